"""A trained text generator in a folder: weights, tokeniser and a JSON that names both.

`model.json` is written last and by one rename; it names the two other files by their checksums, so that
a kill at any moment leaves the old model or the new one, and never parts of both.
"""

import codecs
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from manyhead.errors import InputError
from manyhead.files import write_bytes, write_text
from manyhead.networks.generation import NOTHING, stream
from manyhead.networks.transformer import Transformer
from manyhead.text.tokenizer import Tokenizer

FORMAT = 1
RECORD = "model.json"


@dataclass(frozen=True)
class TextModel:
    """Sizes of a generator's network.

    Args:
        channels, depth, heads: of the decoder, with rotary positions.
        context: tokens that it was trained on at a time, and reads at most.
    """

    channels: int = 128
    depth: int = 4
    heads: int = 4
    context: int = 256

    def network(self, vocabulary: int) -> Transformer:
        """An untrained network.

        Raises:
            InputError: if a size cannot be.
        """
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is a whole number above zero, got {value!r}")
        return Transformer(vocabulary, self.channels, self.depth, self.heads)


class Writer:
    """A network with its tokeniser: writes on from a prompt, and is saved and loaded as one.

    Args:
        sizes: of the network.
        network: the network.
        tokenizer: what it was trained with.
        record: how it was trained, kept in `model.json`.
    """

    def __init__(
        self,
        sizes: TextModel,
        network: Transformer,
        tokenizer: Tokenizer,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.sizes, self.network, self.tokenizer, self.record = sizes, network, tokenizer, record or {}

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder; what it held before is replaced as a whole."""
        folder = Path(folder)
        # the output map is the embedding: safetensors stores each memory once
        tensors = {
            name: weight.detach().clone()
            for name, weight in self.network.state_dict().items()
            if name != "output.weight"
        }
        parts = {"weights": write_tensors(tensors), "tokenizer": self.tokenizer.to_json().encode()}
        names = {}
        for kind, ending in {"weights": "safetensors", "tokenizer": "json"}.items():
            digest = hashlib.sha256(parts[kind]).hexdigest()
            names[kind] = {"file": f"{kind}-{digest[:12]}.{ending}", "sha256": digest}
            write_bytes(folder / names[kind]["file"], parts[kind])
        held = {"format": FORMAT, "network": asdict(self.sizes), **names, "training": self.record}
        write_text(folder / RECORD, json.dumps(held, indent=1) + "\n")
        keep = {names[kind]["file"] for kind in names}
        for pattern in ("weights-*.safetensors", "tokenizer-*.json"):
            for old in folder.glob(pattern):
                if old.name not in keep:
                    with contextlib.suppress(OSError):
                        old.unlink()

    @classmethod
    def load(cls, folder: str | Path) -> "Writer":
        """Read a model from its folder.

        Raises:
            InputError: if there is none, or a file of it is absent, truncated, altered, or of another
                model.
        """
        folder = Path(folder)
        try:
            held = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except OSError:
            raise InputError(
                f"there is no text model in {folder} (no {RECORD}); train one: manyhead train-text"
            ) from None
        except ValueError as fault:
            raise InputError(f"{folder / RECORD} is damaged: {fault}") from None
        try:
            if held["format"] != FORMAT:
                raise InputError(
                    f"{folder / RECORD} has format {held['format']}, this version reads {FORMAT}"
                )
            tokenizer = Tokenizer.from_json(_part(folder, held, "tokenizer").decode("utf-8", "replace"))
            weights = _part(folder, held, "weights")
            sizes = TextModel(**held["network"])
        except (KeyError, TypeError) as fault:
            raise InputError(f"{folder / RECORD} is not a text model's: {fault}") from None
        network = sizes.network(len(tokenizer))
        try:
            tensors = read_tensors(weights)
            tensors["output.weight"] = tensors["embedding.tokens.weight"]
            if len(tensors["output.weight"]) != len(tokenizer):
                raise InputError(
                    f"the tokeniser in {folder} has {len(tokenizer)} tokens and the weights "
                    f"{len(tensors['output.weight'])}: they are of different models"
                )
            network.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, KeyError) as fault:
            raise InputError(f"the weights in {folder} do not fit its {RECORD}: {fault}") from None
        return cls(sizes, network.eval(), tokenizer, held.get("training"))

    def read(self, prompt: str) -> list[int]:
        """Token ids of a prompt.

        Raises:
            InputError: if it is empty, no text, or longer than the network reads.
        """
        try:
            ids = self.tokenizer.encode(prompt.encode())
        except UnicodeEncodeError as fault:
            raise InputError(f"the prompt is not text: {fault.reason} at character {fault.start}") from None
        if not ids:
            raise InputError("the prompt is empty: give a beginning, such as 'def '")
        if len(ids) > self.sizes.context:
            raise InputError(
                f"the prompt has {len(ids)} tokens, the model reads at most {self.sizes.context}: shorten it"
            )
        return ids

    def write(self, prompt: str, tokens: int, *, seed: int | None = None, **options: Any) -> Iterator[str]:
        """Write on from a prompt, piece by piece.

        Where the context is full, the network goes on from its younger half.

        Args:
            prompt: the beginning.
            tokens: how many to write.
            seed: of the choice of tokens; None for another each time.
            options: temperature, top_k and top_p of `manyhead.networks.generation.choose`.

        Raises:
            InputError: as `read`, or if an option is out of its range.
        """
        if tokens < 1:
            raise InputError(f"tokens is at least 1, got {tokens}")
        ids, left = self.read(prompt), tokens
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while left:
            if len(ids) >= self.sizes.context:
                ids = ids[-max(1, self.sizes.context // 2) :]
            room = min(left, max(1, self.sizes.context - len(ids)))
            for drawn in stream(self.network, [ids], room, generator=generator, **options):
                token = int(drawn[0])
                if token != NOTHING:
                    ids.append(token)
                    left -= 1
                    if piece := decoder.decode(self.tokenizer.decode([token])):
                        yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    @torch.no_grad()
    def bits_a_byte(self, ids: Tensor, windows: int = 32) -> float:
        """Mean bits a byte of evenly spread windows of tokens."""
        length = min(self.sizes.context, len(ids) - 1)
        starts = torch.linspace(0, len(ids) - length - 1, windows).long()
        nats = size = 0.0
        for start in starts.split(8):
            part = ids[start[:, None] + torch.arange(length + 1)]
            logits = self.network(part[:, :-1]).flatten(0, 1)
            nats += float(torch.nn.functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum"))
            size += len(self.tokenizer.decode(part[:, 1:].flatten().tolist()))
        return nats / size / float(torch.log(torch.tensor(2.0)))


def _part(folder: Path, held: dict[str, Any], kind: str) -> bytes:
    """Read a file that `model.json` names, and see that it is the one."""
    path = folder / str(held[kind]["file"])
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise InputError(
            f"the {kind} of the model in {folder} cannot be read: {fault.strerror}: {path}"
        ) from None
    if hashlib.sha256(content).hexdigest() != held[kind]["sha256"]:
        raise InputError(
            f"{path} is not the {kind} that the model in {folder} was saved with: it is truncated, "
            "altered or of another model"
        )
    return content
