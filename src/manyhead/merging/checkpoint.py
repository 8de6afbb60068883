"""Checkpoints on disk: what a header says, and reading parts of a tensor without the rest.

Safetensors files (also in shards with an index) and PyTorch's own zip files. Only headers are read
until a part of a tensor is asked for; nothing is mapped into memory, so that memory stays bounded.
"""

import json
import math
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhead.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes; the bound that the safetensors format itself sets
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: its dtype and shape, the file and the byte at which it begins."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Checkpoint:
    """A state dict on disk, known by its headers.

    Args:
        path: a `.safetensors` file, a PyTorch file (`.pt`, `.pth`, `.bin`), or a folder with one such
            file or an index of shards.

    Raises:
        InputError: if there is nothing at `path`, or it cannot be read as a checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = _files(self.path)
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            found = _safetensors(file) if file.suffix == ".safetensors" else _pytorch(file)
            for name, entry in found.items():
                if name in self.entries:
                    raise InputError(f"{self.path} holds the tensor {name!r} in two of its shards")
                self.entries[name] = entry
        if not self.entries:
            raise InputError(f"{self.path} holds no tensors")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read elements `start` to `stop` of a tensor in row-major order, as a flat tensor."""
        entry = self.entries[name]
        stop = entry.size if stop is None else stop
        width = entry.dtype.itemsize
        buffer = bytearray((stop - start) * width)
        if not buffer:
            return torch.empty(0, dtype=entry.dtype)
        view, position = memoryview(buffer), entry.offset + start * width
        descriptor = os.open(entry.file, os.O_RDONLY)
        try:
            while view:
                count = os.preadv(descriptor, [view], position)
                if count == 0:
                    raise InputError(f"{entry.file} ends inside the tensor {name!r}")
                view, position = view[count:], position + count
        finally:
            os.close(descriptor)
        return torch.frombuffer(buffer, dtype=entry.dtype)

    def fingerprint(self) -> list[list[Any]]:
        """Name, bytes and time of change of every file: equal as long as nobody touched them."""
        stats = [(file, file.stat()) for file in self.files]
        return [[str(file.resolve()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"there is no checkpoint at {path}")
    for index in INDEXES:
        if (path / index).is_file():
            try:
                shards = sorted(set(json.loads((path / index).read_text("utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError) as wrong:
                raise InputError(f"{path / index} is not an index of shards: {wrong!r}") from None
            for shard in shards:
                if not (path / shard).is_file():
                    raise InputError(f"{path / index} names {shard}, which is not there")
            return [path / shard for shard in shards]
    for pattern in ("*.safetensors", "*.pt", "*.pth", "*.bin"):
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            listed = ", ".join(file.name for file in found[:4])
            raise InputError(f"{path} holds several checkpoints ({listed}) and no index; name one of them")
        if found:
            return found
    raise InputError(f"the folder {path} holds no .safetensors, .pt, .pth or .bin file")


def _safetensors(file: Path) -> dict[str, Entry]:
    """Read a safetensors header: eight bytes of length, then JSON, then the tensors without gaps."""
    whole = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > min(LARGEST_HEADER, whole - 8):
            raise InputError(f"{file} is not a safetensors file, or is cut off: its header does not fit")
        text = stream.read(length)
    entries = {}
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for name, about in header.items():
            if about["dtype"] not in DTYPES:
                raise InputError(
                    f"{file}: tensor {name!r} has dtype {about['dtype']}, which is not supported"
                )
            first, last = about["data_offsets"]
            shape = tuple(about["shape"])
            entry = Entry(DTYPES[about["dtype"]], shape, file, 8 + length + first)
            if min(shape, default=0) < 0 or last - first != entry.size * entry.dtype.itemsize or first < 0:
                raise InputError(f"{file}: the bytes of tensor {name!r} do not fit its shape {shape}")
            if 8 + length + last > whole:
                raise InputError(
                    f"{file} is cut off: tensor {name!r} ends at byte {8 + length + last}, "
                    f"the file has {whole}"
                )
            entries[name] = entry
    except InputError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError) as wrong:
        raise InputError(f"{file} has a broken safetensors header: {wrong!r}") from None
    return entries


def _pytorch(file: Path) -> dict[str, Entry]:
    """Find the tensors of a PyTorch zip file; a 'state_dict' or 'model' inside it is unwrapped."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        # shapes and places of the data, but no data; what torch warns of is in the error below
        with warnings.catch_warnings(), FakeTensorMode():
            warnings.simplefilter("ignore")
            content = torch.load(file, weights_only=True)
    except Exception as wrong:
        reason = str(wrong).strip().split("\n")[0][:200]
        raise InputError(
            f"{file} cannot be read as a PyTorch checkpoint ({reason}); save its state dict as safetensors"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise InputError(f"{file} holds a {type(content).__name__}, not a state dict")
    entries = {}
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            continue
        offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if tensor.dtype not in NAMES or not tensor.is_contiguous() or offset is None:
            raise InputError(
                f"{file}: tensor {name!r} ({tensor.dtype}, strides {tensor.stride()}) cannot be read in "
                "parts; save its state dict as safetensors"
            )
        place = offset + tensor.storage_offset() * tensor.dtype.itemsize
        entries[str(name)] = Entry(tensor.dtype, tuple(tensor.shape), file, place)
    return entries


def layout(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> "Layout":
    """Lay out a safetensors file: wide dtypes first, so that every tensor is aligned, then by name."""
    order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    places, position = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        places[name] = position
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = struct.pack("<Q", len(text)) + text
    return Layout(start, {name: len(start) + place for name, place in places.items()}, len(start) + position)


@dataclass(frozen=True)
class Layout:
    """A safetensors file before its data: the header's bytes, where each tensor begins, the whole size."""

    header: bytes
    offsets: dict[str, int]
    size: int


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a flat contiguous tensor, without a copy."""
    array: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(array)
