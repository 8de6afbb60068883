"""NATTEN's function and module names over `attend`: `import manyhead.compat.natten as natten`.

Hassani et al., arXiv 2204.07143, 2403.04690 and 2504.16922. Fused operations take `(batch, *grid, heads,
head_dim)` and scale inside; unfused ones take `(batch, heads, *grid, head_dim)` and do not scale. All
train on CPU. Arguments that choose CUDA tiles or back ends are accepted and do nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from manyhead.attention import attend
from manyhead.attention import merge as _merge
from manyhead.errors import InputError
from manyhead.kernels.unfused import neighborhood_av, neighborhood_qk
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.pattern import Window

Sizes = int | Sequence[int]
Flags = bool | Sequence[bool]
T = TypeVar("T")


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


def _names(axes: int) -> str:
    """The grid's axes as shapes name them."""
    return ", ".join("XYZ"[:axes])


def _fused(axes: int) -> Callable[..., Any]:
    """The fused operation on grids of so many axes."""

    def neighborhood_attention(
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

    return _named(
        neighborhood_attention,
        f"na{axes}d",
        f"{axes}-D neighbourhood attention on `(batch, {_names(axes)}, heads, head_dim)`, fused.",
    )


def _query_key(axes: int) -> Callable[..., Tensor]:
    """The first unfused operation on grids of so many axes."""

    def query_key(
        query: Tensor,
        key: Tensor,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        is_causal: Flags = False,
        rpb: Tensor | None = None,
    ) -> Tensor:
        _grid_axes(query, axes, "query")
        return neighborhood_qk(query, key, _window(axes, kernel_size, 1, dilation, is_causal), rpb)

    shape = f"(batch, heads, {_names(axes)}, slots)"
    return _named(
        query_key, f"na{axes}d_qk", f"Unscaled logits of {axes}-D windows, `{shape}`, slots row-major."
    )


def _attention_value(axes: int) -> Callable[..., Tensor]:
    """The second unfused operation on grids of so many axes."""

    def attention_value(
        attn: Tensor, value: Tensor, kernel_size: Sizes, dilation: Sizes = 1, is_causal: Flags = False
    ) -> Tensor:
        _grid_axes(value, axes, "value")
        return neighborhood_av(attn, value, _window(axes, kernel_size, 1, dilation, is_causal))

    return _named(
        attention_value,
        f"na{axes}d_av",
        f"Values of {axes}-D windows added up with weights, `(batch, heads, {_names(axes)}, head_dim)`.",
    )


def _named(function: Callable[..., T], name: str, text: str) -> Callable[..., T]:
    """Give a function the name and docstring that it is found by."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


na1d, na2d, na3d = _fused(1), _fused(2), _fused(3)
na1d_qk, na2d_qk, na3d_qk = _query_key(1), _query_key(2), _query_key(3)
na1d_av, na2d_av, na3d_av = _attention_value(1), _attention_value(2), _attention_value(3)


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
