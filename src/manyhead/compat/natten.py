"""NATTEN's function and module names over `attend`: `import manyhead.compat.natten as natten`.

Hassani et al., arXiv 2204.07143, 2403.04690 and 2504.16922. Fused operations take `(batch, *grid, heads,
head_dim)` and scale inside; unfused ones take `(batch, heads, *grid, head_dim)` and do not scale. All
train on CPU. Arguments that choose CUDA tiles or back ends are accepted and do nothing.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from manyhead.attention import attend
from manyhead.attention import merge as _merge
from manyhead.errors import InputError
from manyhead.kernels.unfused import neighborhood_av, neighborhood_qk
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.pattern import Window

Sizes = int | Sequence[int]
Flags = bool | Sequence[bool]


def _tuple(value: Any, axes: int, name: str) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        raise InputError(f"{name} takes one value or {axes}, got {value!r}")
    return values


def _window(axes: int, kernel_size: Sizes, stride: Sizes, dilation: Sizes, is_causal: Flags) -> Window:
    return Window(
        _tuple(kernel_size, axes, "kernel_size"),
        _tuple(stride, axes, "stride"),
        _tuple(dilation, axes, "dilation"),
        _tuple(is_causal, axes, "is_causal"),
    )


def _grid_axes(x: Tensor, axes: int, name: str) -> None:
    if x.ndim != axes + 3:
        raise InputError(f"{name} has {axes + 3} axes for a grid of {axes}, got {tuple(x.shape)}")


def _fused(
    axes: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    dilation: Sizes,
    is_causal: Flags,
    scale: float | None,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
    return_lse: bool,
) -> Any:
    _grid_axes(query, axes, "query")
    return attend(
        query,
        key,
        value,
        _window(axes, kernel_size, stride, dilation, is_causal),
        scale=scale,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
    )


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **ignored: Any,
) -> Any:
    """1-D neighbourhood attention on `(batch, X, heads, head_dim)`, as `natten.na1d`."""
    extra = (scale, additional_keys, additional_values, return_lse)
    return _fused(1, query, key, value, kernel_size, stride, dilation, is_causal, *extra)


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **ignored: Any,
) -> Any:
    """2-D neighbourhood attention on `(batch, X, Y, heads, head_dim)`, as `natten.na2d`."""
    extra = (scale, additional_keys, additional_values, return_lse)
    return _fused(2, query, key, value, kernel_size, stride, dilation, is_causal, *extra)


def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes = 1,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
    **ignored: Any,
) -> Any:
    """3-D neighbourhood attention on `(batch, X, Y, Z, heads, head_dim)`, as `natten.na3d`."""
    extra = (scale, additional_keys, additional_values, return_lse)
    return _fused(3, query, key, value, kernel_size, stride, dilation, is_causal, *extra)


def _qk(
    axes: int,
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes,
    is_causal: Flags,
    rpb: Tensor | None,
) -> Tensor:
    _grid_axes(query, axes, "query")
    return neighborhood_qk(query, key, _window(axes, kernel_size, 1, dilation, is_causal), rpb)


def _av(
    axes: int, attn: Tensor, value: Tensor, kernel_size: Sizes, dilation: Sizes, is_causal: Flags
) -> Tensor:
    _grid_axes(value, axes, "value")
    return neighborhood_av(attn, value, _window(axes, kernel_size, 1, dilation, is_causal))


def na1d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Unscaled logits of 1-D windows, `(batch, heads, X, kernel_size)`."""
    return _qk(1, query, key, kernel_size, dilation, is_causal, rpb)


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Unscaled logits of 2-D windows, slots row-major."""
    return _qk(2, query, key, kernel_size, dilation, is_causal, rpb)


def na3d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Flags = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Unscaled logits of 3-D windows, slots row-major."""
    return _qk(3, query, key, kernel_size, dilation, is_causal, rpb)


def na1d_av(
    attn: Tensor, value: Tensor, kernel_size: Sizes, dilation: Sizes = 1, is_causal: Flags = False
) -> Tensor:
    """Values of 1-D windows added up with weights."""
    return _av(1, attn, value, kernel_size, dilation, is_causal)


def na2d_av(
    attn: Tensor, value: Tensor, kernel_size: Sizes, dilation: Sizes = 1, is_causal: Flags = False
) -> Tensor:
    """Values of 2-D windows added up with weights."""
    return _av(2, attn, value, kernel_size, dilation, is_causal)


def na3d_av(
    attn: Tensor, value: Tensor, kernel_size: Sizes, dilation: Sizes = 1, is_causal: Flags = False
) -> Tensor:
    """Values of 3-D windows added up with weights."""
    return _av(3, attn, value, kernel_size, dilation, is_causal)


def merge_attentions(outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor], **ignored: Any) -> Any:
    """Join attentions of the same queries over disjoint keys, as `natten.functional.merge_attentions`."""
    return _merge(outputs, lse_tensors)


class _Module(NeighborhoodAttention):
    """Common part of the three modules; parameters are named `qkv`, `proj` and `rpb` as in NATTEN."""

    axes = 0

    def __init__(
        self,
        embed_dim: int | None = None,
        num_heads: int = 1,
        kernel_size: Sizes = 3,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        rel_pos_bias: bool = False,
        dim: int | None = None,
        **ignored: Any,
    ) -> None:
        channels = embed_dim if embed_dim is not None else dim
        if channels is None:
            raise InputError("embed_dim (or dim, its older name) is needed")
        window = _window(self.axes, kernel_size, stride, dilation, is_causal)
        super().__init__(channels, num_heads, window, bias=qkv_bias, relative=rel_pos_bias)
        if qk_scale is not None and qk_scale != (channels // num_heads) ** -0.5:
            raise InputError(f"qk_scale is head_dim ** -0.5 here, got {qk_scale}")
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.ndim != self.axes + 2:
            raise InputError(f"x has {self.axes + 2} axes for a grid of {self.axes}, got {tuple(x.shape)}")
        out: Tensor = self.proj_drop(super().forward(x, context))
        return out


class NeighborhoodAttention1D(_Module):
    """Module on `(batch, X, channels)`."""

    axes = 1


class NeighborhoodAttention2D(_Module):
    """Module on `(batch, X, Y, channels)`."""

    axes = 2


class NeighborhoodAttention3D(_Module):
    """Module on `(batch, X, Y, Z, channels)`."""

    axes = 3
