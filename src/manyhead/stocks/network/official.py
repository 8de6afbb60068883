"""The released code's names: its checkpoints in, its checkpoints out.

The public repository Eric991005/Multitask-Stockformer stores one tensor per linear map. Ours stacks the maps
of one input, so a name here stands for a slice of one of our tensors. The released model also owns tensors
that it never uses (`ssal.proj`, `ssah.proj`, `adaptive_fusion.klfc`, `.vlfc`) and registers its
convolution twice (`tcn.conv` is `tcn.tcn.0.0`).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.stocks.network.layers import FeedForward
from manyhead.stocks.network.spatial import SpatialAttention
from manyhead.stocks.network.stockformer import EncoderLayer, Stockformer

Named = Iterator[tuple[str, Tensor]]


def _pair(name: str, weight: Tensor, bias: Tensor | None) -> Named:
    yield f"{name}.weight", weight
    if bias is not None:
        yield f"{name}.bias", bias


def _stacked(names: list[str], weight: Tensor, bias: Tensor | None) -> Named:
    """Linear maps of the same input whose rows are stacked."""
    count = len(names)
    biases: list[Tensor | None] = [None] * count if bias is None else list(bias.chunk(count))
    for name, rows, offset in zip(names, weight.chunk(count), biases, strict=True):
        yield from _pair(name, rows, offset)


def _feed(name: str, feed: FeedForward, places: tuple[int, int] = (0, 1)) -> Named:
    for place, layer in zip(places, (feed.first, feed.second), strict=True):
        yield from _pair(f"{name}.{place}", layer.weight, layer.bias)


def _spatial(name: str, part: SpatialAttention) -> Named:
    yield from _stacked([f"{name}.{x}fc" for x in "qkv"], part.qkv.weight, part.qkv.bias)
    yield from _pair(f"{name}.ofc", part.out.weight, part.out.bias)
    yield from _feed(f"{name}.ff", part.feed, (0, 2))
    yield from _pair(f"{name}.proj", part.unused_proj_weight, part.unused_proj_bias)


def _layer(name: str, layer: EncoderLayer) -> Named:
    taps = layer.convolution.weight.permute(1, 2, 0).unsqueeze(2)  # (out, in, 1, tap)
    yield from _pair(f"{name}.tcn.conv", taps, layer.convolution.bias)
    time = layer.attention
    names = [f"{name}.tatt.{x}fc.linear.0" for x in "qkv"]
    yield from _stacked(names, time.qkv.weight, time.qkv.bias)
    yield from _pair(f"{name}.tatt.ofc.linear.0", time.out.weight, time.out.bias)
    yield from _feed(f"{name}.tatt.ff.linear", time.feed)
    yield from _spatial(f"{name}.ssal", layer.spatial_low)
    yield from _spatial(f"{name}.ssah", layer.spatial_high)


def official_views(network: Stockformer) -> dict[str, Tensor]:
    """Every tensor of the released model, once, as a view into the network's own storage.

    `tcn.tcn.0.0` is left out: it is `tcn.conv` by a second name.

    Raises:
        InputError: for a network with an ablation that the released code does not have.
    """
    fusion = network.fusion
    if fusion is None:
        raise InputError("fusion='addition' has no counterpart in the released code")
    start, views = network.start, dict[str, Tensor]()
    names = ["features.start_emb_l.linear", "features.start_emb_h.linear"]
    views.update(_stacked([f"{name}.0" for name in names], start.first.weight, start.first.bias))
    for name, second in zip(names, (start.second_low, start.second_high), strict=True):
        views.update(_pair(f"{name}.1", second.weight, second.bias))
    views.update(_feed("features.te_emb.ff_te.linear", network.day.feed))
    for number, layer in enumerate(network.encoder):
        assert isinstance(layer, EncoderLayer)
        views.update(_layer(f"features.dual_encoder.{number}", layer))
    name = "features.adaptive_fusion"
    low = fusion.low_weight, fusion.low_bias
    views.update(_pair(f"{name}.qlfc.linear.0", fusion.query.weight, fusion.query.bias))
    views.update(_stacked([f"{name}.{x}lfc.linear.0" for x in "kv"], *low))
    high = fusion.key_value
    views.update(_stacked([f"{name}.{x}hfc.linear.0" for x in "kv"], high.weight, high.bias))
    views.update(_pair(f"{name}.ofc.linear.0", fusion.out.weight, fusion.out.bias))
    views.update(_feed(f"{name}.ff.linear", fusion.feed))
    for name, predictor in (("pre_l", network.predict_low), ("pre_h", network.predict_high)):
        days = predictor.days
        views.update(_pair(f"features.{name}", days.weight[:, :, None, None], days.bias))
    views.update(_feed("classifier.end_emb_class.linear", network.class_head))
    views.update(_feed("classifier.end_emb_regress.linear", network.return_head))
    return views


def _twin(name: str) -> str:
    """The second name of a convolution's tensor, or the name itself."""
    return name.replace(".tcn.conv.", ".tcn.tcn.0.0.")


def official_state_dict(network: Stockformer) -> dict[str, Tensor]:
    """The network's weights under the released code's names, as copies; each key of its state dict once."""
    state = dict[str, Tensor]()
    for name, view in official_views(network).items():
        state[name] = view.detach().clone().contiguous()
        state.setdefault(_twin(name), state[name])
    return state


@torch.no_grad()
def load_official(network: Stockformer, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict with the released code's names into the network.

    Args:
        network: built with the sizes of the checkpoint.
        state: names to tensors; a leading 'module.' (DataParallel) is dropped. A convolution may come under
            either of its two names or both.

    Raises:
        InputError: if a name is missing or unknown, a shape differs, or a convolution's two names disagree.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if len(given) != len(state):
        raise InputError("the state dict holds the same names with and without 'module.'")
    views = official_views(network)
    missing, chosen = [], dict[str, Tensor]()
    for name in views:
        twins = [given.pop(key) for key in {name, _twin(name)} if key in given]
        if not twins:
            missing.append(name)
        elif any(not torch.equal(twin, twins[0]) for twin in twins[1:]):
            raise InputError(f"{name} and {_twin(name)} are one tensor in the released code but differ here")
        else:
            chosen[name] = twins[0]
    if missing or given:
        raise InputError(
            f"not a state dict of this Stockformer: missing {missing[:4] or 'nothing'}, "
            f"unknown {sorted(given)[:4] or 'nothing'}"
        )
    for name, tensor in chosen.items():
        if views[name].shape != tensor.shape:
            raise InputError(f"{name} must have shape {tuple(views[name].shape)}, got {tuple(tensor.shape)}")
    for name, tensor in chosen.items():
        views[name].copy_(tensor)


def official_parameter_count(network: Stockformer) -> int:
    """Parameters as the released code counts them: its unused ones too, the convolution once."""
    return sum(view.numel() for view in official_views(network).values())
