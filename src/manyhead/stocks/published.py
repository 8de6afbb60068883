"""The published Stockformer checkpoint as a model: read without running it, kept, used on any panel.

The released checkpoint (sub-dataset 12 of arXiv 2401.06139v2) is a pickled state dict. Its input is 363 wide:
return, trend, and one column for each file of the factor folder in alphabetical order, CLOSE0, CLOSE1,
CLOSE10, ... Besides Alpha360 the folder held LABEL0, the label itself. In the released alignment a window's
last label is known on the decision day, so that it is no look-ahead there, but a second copy of the return.
Columns whose weights never left their initial range were constant zero when the model was trained (VOLUME1
to VOLUME59); they are kept so.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.files import write_bytes
from manyhead.stocks.factors.names import SERIES, factor_names
from manyhead.stocks.network import Stockformer, load_official, official_parameter_count

LABEL = "LABEL0"


@dataclass(frozen=True)
class Published:
    """A published network.

    Attributes:
        network: in evaluation mode.
        factors: its factor columns, in order.
        untrained: those whose weights are as they were drawn; they are fed zeros.
        sha256: of the file that the weights came from.
    """

    network: Stockformer
    factors: tuple[str, ...]
    untrained: tuple[str, ...]
    sha256: str

    def facts(self) -> dict[str, Any]:
        """What is kept beside the weights."""
        network = self.network
        return {
            "sizes": {
                "features": network.features,
                "dim": network.dim,
                "layers": len(network.encoder),
                "input_days": network.input_days,
                "output_days": network.output_days,
                "classes": network.classes,
                "head_dim": _head_dim(network),
            },
            "parameters": official_parameter_count(network),
            "factors": list(self.factors),
            "untrained": list(self.untrained),
            "sha256": self.sha256,
            "source": "Eric991005/Multitask-Stockformer, arXiv 2401.06139",
        }


def read_published(path: str | Path) -> Published:
    """Read a published checkpoint: the released pickle, or the safetensors file that `save_published` wrote.

    Args:
        path: the file. A pickle may hold tensors and plain containers, nothing else: it is never executed.

    Raises:
        InputError: if the file is missing, holds anything but tensors, or is of another network.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise InputError(f"cannot read the checkpoint {path}: {fault.strerror}") from None
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    state = _unpickled(path)
    network = network_for(state, path)
    load_official(network, state)
    names = columns_of(network.features)
    return Published(network.eval(), names, untrained(network, names), hashlib.sha256(content).hexdigest())


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict; PyTorch's restricted reader runs no code of the file."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as refused:
        reason = str(refused).split("\n")[0].split("Please file")[0].strip()
        raise InputError(
            f"{path} is refused: only plain tensors are read, anything else could run code ({reason})"
        ) from None
    except Exception as fault:  # whatever a damaged file makes the reader stumble over
        raise InputError(f"{path} is not a PyTorch checkpoint: {_line(fault)}") from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise InputError(f"{path} holds no state dict: names and their tensors are accepted")
    return {str(name).removeprefix("module."): tensor.float() for name, tensor in held.items()}


def _line(fault: Exception) -> str:
    """First line of an error's text, or its kind where it has none."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def network_for(state: Mapping[str, Tensor], path: Path) -> Stockformer:
    """Build the network that a state dict of the released code belongs to, its sizes read off the shapes."""
    try:
        dim, features = state["features.start_emb_l.linear.0.weight"].shape
        output_days, input_days = state["features.pre_l.weight"].shape[:2]
        classes = len(state["classifier.end_emb_class.linear.1.bias"])
        layers = {int(name.split(".")[2]) for name in state if name.startswith("features.dual_encoder.")}
        head_dim = state["features.dual_encoder.0.ssal.proj.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as fault:
        raise InputError(f"{path} is no checkpoint of the released Stockformer: {fault} is wrong") from None
    return Stockformer(
        features, dim, len(layers), input_days, output_days, classes, head_dim=head_dim, dropout=0.2
    )


def columns_of(features: int) -> tuple[str, ...]:
    """Name the factor columns of an input so wide: Alpha360's files in alphabetical order, with the label's.

    Raises:
        InputError: if the width is neither 362 (without LABEL0) nor 363 (with it).
    """
    names = list(factor_names("alpha360", SERIES))
    if features == len(names) + 3:
        names.append(LABEL)
    elif features != len(names) + 2:
        raise InputError(
            f"the checkpoint reads {features} inputs: return, trend and the 360 factors of Alpha360 make "
            "362, with LABEL0 among the files 363; other folders of factors are not known here"
        )
    return tuple(sorted(names))


def untrained(network: Stockformer, names: tuple[str, ...]) -> tuple[str, ...]:
    """Name the factors whose weights lie within the range that they were drawn from, in both branches.

    An input that was always zero has no gradient. Where every column looks so, none is named.
    """
    weights = network.start.first.weight.detach()[:, 2:]
    as_drawn = (weights.abs() <= network.features**-0.5 * (1 + 1e-6)).all(0)
    if bool(as_drawn.all()):
        return ()
    return tuple(name for name, still in zip(names, as_drawn.tolist(), strict=True) if still)


def _head_dim(network: Stockformer) -> int:
    proj: Tensor = network.encoder[0].spatial_low.unused_proj_weight  # type: ignore[union-attr, assignment]
    return int(proj.shape[1])


def save_published(model: Published, path: str | Path) -> None:
    """Write a published network as safetensors, its sizes, columns and origin in the metadata.

    Raises:
        InputError: if the name does not end in .safetensors.
    """
    from safetensors.torch import save

    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: the file must end in .safetensors")
    weights = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    write_bytes(Path(path), save(weights, {"manyhead": json.dumps(model.facts())}))


def _from_safetensors(path: Path) -> Published:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            facts = json.loads((stored.metadata() or {})["manyhead"])
            weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        network = Stockformer(**facts["sizes"])
        network.load_state_dict(weights)
        names, still = tuple(facts["factors"]), tuple(facts["untrained"])
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as fault:
        raise InputError(f"{path} is not a file of `import-official`: {fault}") from None
    return Published(network.eval(), names, still, str(facts["sha256"]))
