"""attend(): exact attention under a pattern on any device, and plan(): which kernel, at what cost.

Queries, keys and values are `(batch, *grid, heads, head_dim)`; the pattern says who sees whom; the
kernel never changes the result beyond rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from manyhead.errors import InputError
from manyhead.grid import Grid
from manyhead.kernels.base import Kernel, Request
from manyhead.kernels.blocks import Blocks
from manyhead.kernels.dense import Reference, Sdpa
from manyhead.kernels.flex import Flex
from manyhead.kernels.frames import compute_dtype
from manyhead.kernels.local import Windows
from manyhead.pattern import Everything, Pattern, PerHead, PerSample

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (Sdpa(), Blocks(), Windows(), Flex(), Reference())
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Plan:
    """What a call of `attend` will do and cost.

    Args:
        kernel: the kernel that is taken.
        refusals: why each of the others cannot run the call, in a sentence.
        pairs: query-key pairs over samples and heads.
        flops: floating-point operations of the matrix products, with those of the backward pass where
            gradients are asked for.
        peak_bytes: most bytes allocated at a time beyond inputs and the output's gradient.
        seconds: estimated time of each kernel that can run, on one CPU core.
    """

    kernel: str
    refusals: dict[str, str]
    pairs: int
    flops: int
    peak_bytes: int
    seconds: dict[str, float]

    @property
    def speedup(self) -> float:
        """Estimated time of dense attention over that of the kernel taken."""
        dense = self.seconds.get("sdpa", self.seconds.get("reference", math.nan))
        return dense / self.seconds[self.kernel]

    def describe(self) -> str:
        """The plan in sentences."""
        lines = [
            f"{self.kernel}: {self.pairs:,} pairs, {self.flops / 1e9:.3g} GFLOP, "
            f"peak {self.peak_bytes / 2**20:.3g} MiB, about {self.seconds[self.kernel] * 1e3:.3g} ms on one "
            f"core, {self.speedup:.3g} times faster than dense."
        ]
        lines += [
            f"{name} is slower: about {s * 1e3:.3g} ms."
            for name, s in self.seconds.items()
            if name != self.kernel
        ]
        lines += [f"{name} is not taken: {reason}." for name, reason in self.refusals.items()]
        return "\n".join(lines)


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _request(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, bias: Tensor | None, lse: bool, grad: bool | None
) -> Request:
    """Check a call and describe it."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor):
            raise InputError(f"{name} takes a tensor (batch, *grid, heads, head_dim), got {type(x).__name__}")
        if x.ndim < 4:
            raise InputError(f"{name} has the shape (batch, *grid, heads, head_dim), got {_shape(x)}")
        if x.dtype not in _FLOATS:
            raise InputError(f"{name} takes floating-point numbers, got {x.dtype}")
        if 0 in x.shape:
            raise InputError(f"{name} is empty: its shape is {_shape(x)}")
    if not isinstance(pattern, Pattern):
        raise InputError(f"pattern takes a Pattern such as Window(7), got {type(pattern).__name__}")
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(f"q, k and v have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if not q.device == k.device == v.device:
        raise InputError(f"q, k and v are on one device, got {q.device}, {k.device} and {v.device}")
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise InputError(f"q, k and v have one batch size, got {q.shape[0]}, {k.shape[0]} and {v.shape[0]}")
    if k.shape[:-1] != v.shape[:-1]:
        raise InputError(f"k and v have one grid and as many heads, got {_shape(k)} and {_shape(v)}")
    if q.shape[-1] != k.shape[-1]:
        raise InputError(f"q and k have one head_dim, got {q.shape[-1]} and {k.shape[-1]}")
    if q.shape[-2] % k.shape[-2]:
        raise InputError(f"the heads of q are a multiple of those of k, got {q.shape[-2]} and {k.shape[-2]}")
    query_grid, key_grid = tuple(q.shape[1:-2]), tuple(k.shape[1:-2])
    pattern.check(query_grid, key_grid)
    if pattern.samples not in (None, q.shape[0]):
        raise InputError(f"the pattern is made for {pattern.samples} samples, the batch has {q.shape[0]}")
    if pattern.heads not in (None, q.shape[-2]):
        raise InputError(f"the pattern is made for {pattern.heads} heads, q has {q.shape[-2]}")
    if bias is not None:
        full = (q.shape[0], q.shape[-2], math.prod(query_grid), math.prod(key_grid))
        fits = bias.ndim <= 4 and all(a in (1, b) for a, b in zip(bias.shape[::-1], full[::-1], strict=False))
        if not fits:
            raise InputError(f"bias has a shape that broadcasts to {full}, got {_shape(bias)}")
        if bias.dtype != q.dtype or bias.device != q.device:
            raise InputError(f"bias has the dtype and device of q, got {bias.dtype} on {bias.device}")
    if grad is None:
        grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return Request(
        batch=q.shape[0],
        query_grid=query_grid,
        key_grid=key_grid,
        heads=q.shape[-2],
        key_heads=k.shape[-2],
        head_dim=q.shape[-1],
        value_dim=v.shape[-1],
        dtype=q.dtype,
        device=q.device.type,
        pattern=pattern,
        bias=bias is not None,
        lse=lse,
        grad=grad,
    )


def _able(request: Request) -> tuple[list[str], dict[str, str]]:
    """Kernels that can run a request, and why the others cannot."""
    refusals = {name: kernel.refusal(request) for name, kernel in KERNELS.items()}
    able = [name for name, reason in refusals.items() if reason is None]
    return able, {name: reason for name, reason in refusals.items() if reason is not None}


def _fastest(request: Request, able: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The kernel of least estimated time; flex, where it can run, is taken on GPUs."""
    seconds = {name: KERNELS[name].seconds(request) for name in able}
    if "flex" in able and "blocks" not in able:
        return "flex", seconds
    fused = [name for name in able if name != "reference"]  # which stores all weights
    return min(fused or able, key=seconds.__getitem__), seconds


def plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    bias: Tensor | None = None,
    kernel: str = "auto",
    return_lse: bool = False,
    grad: bool | None = None,
) -> Plan:
    """Say what `attend` would do with these arguments, without doing it.

    Args:
        q: as in `attend`; only shape, dtype, device and `requires_grad` are read.
        k: likewise.
        v: likewise.
        pattern: who sees whom.
        bias: as in `attend`.
        kernel: as in `attend`.
        return_lse: as in `attend`.
        grad: whether to count the backward pass; read from the tensors if left out.

    Raises:
        InputError: as `attend`.
    """
    pattern = Everything() if pattern is None else pattern
    q = _crop(q, k, pattern)
    request = _request(q, k, v, pattern, bias, return_lse, grad)
    able, refusals = _able(request)
    fastest, seconds = _fastest(request, able)
    chosen = fastest if kernel == "auto" else _named(kernel, refusals)
    pairs = pattern.pairs(request.query_grid, request.key_grid)
    pairs *= (1 if pattern.samples else request.batch) * (1 if pattern.heads else request.heads)
    both = request.head_dim + request.value_dim
    return Plan(
        kernel=chosen,
        refusals=refusals,
        pairs=pairs,
        flops=2 * pairs * (both + (both + 3 * request.head_dim if request.grad else 0)),
        peak_bytes=KERNELS[chosen].peak_bytes(request),
        seconds=seconds,
    )


def _named(kernel: str, refusals: dict[str, str]) -> str:
    if kernel not in KERNELS:
        raise InputError(f"kernel is 'auto' or one of {', '.join(KERNELS)}; got {kernel!r}")
    if kernel in refusals:
        raise InputError(f"kernel {kernel!r} cannot run this: {refusals[kernel]}")
    return kernel


def _crop(q: Tensor, k: Tensor, pattern: Pattern) -> Tensor:
    """Queries of the whole key grid are cut to those that a border 'valid' keeps."""
    if not isinstance(q, Tensor) or not isinstance(pattern, Pattern) or q.ndim != k.ndim or q.ndim < 4:
        return q
    border = getattr(pattern, "border", None)
    if border != "valid" or q.shape[1:-2] != k.shape[1:-2]:
        return q
    axes = pattern.axes(q.ndim - 3)  # type: ignore[attr-defined]
    for number, axis in enumerate(axes):
        if axis.size is not None:
            before = (axis.size - 1 if axis.causal else axis.size // 2) * axis.dilation
            kept = q.shape[1 + number] - (axis.size - 1) * axis.dilation
            if kept < 1:
                return q  # the pattern's own check says what is wrong
            q = q.narrow(1 + number, before, kept)
    return q


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    kernel: str = "auto",
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact softmax attention of the pairs that a pattern allows.

    Args:
        q: queries `(batch, *query_grid, heads, head_dim)`; under a border 'valid' also those of the
            whole key grid, of which the inner ones are taken.
        k: keys `(batch, *key_grid, key_heads, head_dim)`; `key_heads` divides `heads`, query head `j`
            uses key head `j // (heads / key_heads)`.
        v: values `(batch, *key_grid, key_heads, value_dim)`.
        pattern: who sees whom; everything, if left out.
        scale: factor on the logits, `head_dim ** -0.5` if left out.
        bias: added to the scaled logits, broadcastable to `(batch, heads, queries, keys)`.
        kernel: 'auto', or one of 'reference', 'sdpa', 'blocks', 'windows', 'flex'.
        additional_keys: keys that every query sees besides, `(batch, extra, key_heads, head_dim)`.
        additional_values: their values, `(batch, extra, key_heads, value_dim)`.
        return_lse: whether to return the log-sum-exp of the logits too.

    Returns:
        Output `(batch, *query_grid, heads, value_dim)`, zero where a query sees nothing; with
        `return_lse` also the natural log-sum-exp `(batch, *query_grid, heads)`, there -inf.

    Raises:
        InputError: if shapes, dtypes, devices or the pattern do not fit, or the kernel cannot run.
    """
    pattern = Everything() if pattern is None else pattern
    q = _crop(q, k, pattern)
    extra = additional_keys is not None or additional_values is not None
    request = _request(q, k, v, pattern, bias, return_lse or extra, None)
    scale = request.head_dim**-0.5 if scale is None else float(scale)
    if extra:
        return _with_additional(
            q, k, v, pattern, scale, bias, kernel, (additional_keys, additional_values), return_lse
        )
    if isinstance(pattern, PerHead | PerSample) and kernel in ("auto", "windows", "blocks") and bias is None:
        return _by_member(q, k, v, pattern, scale, kernel, return_lse)
    able, refusals = _able(request)
    chosen = _fastest(request, able)[0] if kernel == "auto" else _named(kernel, refusals)
    out, lse = KERNELS[chosen].run(q, k, v, request, scale, bias)
    return (out, lse) if return_lse and lse is not None else out


def _by_member(
    q: Tensor, k: Tensor, v: Tensor, pattern: PerHead | PerSample, scale: float, kernel: str, lse: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Heads or samples of one pattern together, then put back in order."""
    heads = isinstance(pattern, PerHead)
    groups = q.shape[-2] // k.shape[-2]
    outs, norms, order = [], [], []
    for member in dict.fromkeys(pattern.patterns):
        index = [number for number, other in enumerate(pattern.patterns) if other == member]
        order += index
        picked = torch.tensor(index, device=q.device)
        if heads:
            mine, keys, values = (
                x.index_select(-2, at)
                for x, at in ((q, picked), (k, picked // groups), (v, picked // groups))
            )
        else:
            mine, keys, values = (x.index_select(0, picked) for x in (q, k, v))
        found = attend(mine, keys, values, member, scale=scale, kernel=kernel, return_lse=lse)
        outs.append(found[0] if isinstance(found, tuple) else found)
        if isinstance(found, tuple):
            norms.append(found[1])
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__), device=q.device)
    out = torch.cat(outs, -2 if heads else 0).index_select(-2 if heads else 0, back)
    if not lse:
        return out
    return out, torch.cat(norms, -1 if heads else 0).index_select(-1 if heads else 0, back)


def _with_additional(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    scale: float,
    bias: Tensor | None,
    kernel: str,
    additional: tuple[Tensor | None, Tensor | None],
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over the pattern and over keys that everyone sees, merged."""
    keys, values = additional
    if keys is None or values is None:
        raise InputError("additional_keys and additional_values are given together")
    for name, x, like in (("additional_keys", keys, k), ("additional_values", values, v)):
        wanted = (like.shape[0], "extra", *like.shape[-2:])
        if x.ndim != 4 or x.shape[0] != like.shape[0] or x.shape[-2:] != like.shape[-2:]:
            raise InputError(f"{name} has the shape {wanted}, got {_shape(x)}")
    grid: Grid = tuple(q.shape[1:-2])
    first = attend(q, k, v, pattern, scale=scale, bias=bias, kernel=kernel, return_lse=True)
    flat = q.flatten(1, -3)
    second = attend(flat, keys, values, Everything(), scale=scale, return_lse=True)
    same = [x.reshape(x.shape[0], *grid, *x.shape[2:]) for x in second]
    out, lse = merge([first[0], same[0]], [first[1], same[1]])
    return (out, lse) if return_lse else out


def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join attentions of the same queries over disjoint sets of keys.

    Hassani et al., 2025, arXiv 2504.16922: `o <- o - sigmoid(l_i - l) (o - o_i)` and
    `l <- l - logsigmoid(l - l_i)`, with the old `l` in both; equal to softmax over the union.

    Args:
        outputs: each `(..., value_dim)`.
        lses: the log-sum-exp of each, `(...)`; -inf where a query sees nothing.

    Returns:
        Output in the dtype of the first, and its log-sum-exp.

    Raises:
        InputError: if there is nothing to merge, or shapes differ.
    """
    if not outputs or len(outputs) != len(lses):
        raise InputError(
            f"merge takes as many outputs as lses, at least one; got {len(outputs)} and {len(lses)}"
        )
    for out, lse in zip(outputs, lses, strict=True):
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise InputError(
                f"outputs have one shape and lses that without its last axis; "
                f"got {_shape(out)} and {_shape(lse)}"
            )
    dtype = compute_dtype(outputs[0].dtype)
    out, lse = outputs[0].to(dtype), lses[0].to(dtype)
    for other, other_lse in zip(outputs[1:], lses[1:], strict=True):
        other_lse = other_lse.to(dtype)
        neither = (lse == -math.inf) & (other_lse == -math.inf)
        # differences of infinities are undefined: where neither part sees a key nothing changes
        gap = (other_lse.masked_fill(neither, 0.0)) - lse.masked_fill(neither, 0.0)
        out = out - torch.sigmoid(gap)[..., None] * (out - other.to(dtype))
        lse = torch.where(gap == math.inf, other_lse, lse - logsigmoid(-gap))
    return out.to(outputs[0].dtype), lse


def assert_plan(plan: Plan, *, memory: str | int | None = None, seconds: float | None = None) -> None:
    """Fail a test when a planned call exceeds a budget.

    Args:
        plan: from `plan`.
        memory: most bytes, a number or a text such as '200MB' or '2GiB'.
        seconds: most estimated seconds on one core.

    Raises:
        AssertionError: if the plan is above a limit, with both numbers.
        InputError: if `memory` cannot be read.
    """
    if memory is not None:
        limit = parse_bytes(memory)
        if plan.peak_bytes > limit:
            raise AssertionError(f"the plan needs {plan.peak_bytes:,} bytes, the budget is {limit:,}")
    if seconds is not None and plan.seconds[plan.kernel] > seconds:
        raise AssertionError(
            f"the plan needs {plan.seconds[plan.kernel]:.3g} s, the budget is {seconds:.3g} s"
        )


def parse_bytes(text: str | int) -> int:
    """Bytes of a text such as '200MB', '2GiB' or '4096'.

    Raises:
        InputError: if it is no amount of memory.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    words = str(text).strip()
    number = words.rstrip("BbIiKkMmGg ")
    try:
        return int(float(number) * units[words[len(number) :].strip().upper()])
    except (ValueError, KeyError):
        raise InputError(f"memory takes an amount such as '200MB' or '2GiB', got {text!r}") from None
