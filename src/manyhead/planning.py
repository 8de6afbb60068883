"""plan(): which kernel `attend` takes and what the call costs, before it is made.

Estimates are good enough to choose by; `measure` replaces them, for one kind of call, by what it measures.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.kernels.base import Bias, Kernel, Request
from manyhead.kernels.blocks import Blocks
from manyhead.kernels.dense import Reference, Sdpa
from manyhead.kernels.flex import Flex
from manyhead.kernels.local import Windows
from manyhead.kernels.relative import RelativeBias
from manyhead.pattern import Everything, Pattern

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for kernel in (Sdpa(), Blocks(), Windows(), Flex(), Reference())
}
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MEASURED: dict[Request, dict[str, float]] = {}  # what `measure` found, for calls of the same kind


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


def shape_of(x: Tensor) -> str:
    """The shape of a tensor as messages write it."""
    return str(tuple(x.shape))


def request_of(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, bias: Bias, lse: bool, grad: bool | None
) -> Request:
    """Check a call and describe it."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor):
            raise InputError(f"{name} takes a tensor (batch, *grid, heads, head_dim), got {type(x).__name__}")
        if x.ndim < 4:
            raise InputError(f"{name} has the shape (batch, *grid, heads, head_dim), got {shape_of(x)}")
        if x.dtype not in _FLOATS:
            raise InputError(f"{name} takes floating-point numbers, got {x.dtype}")
        if 0 in x.shape:
            raise InputError(f"{name} is empty: its shape is {shape_of(x)}")
    if not isinstance(pattern, Pattern):
        raise InputError(f"pattern takes a Pattern such as Window(7), got {type(pattern).__name__}")
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(f"q, k and v have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if not q.device == k.device == v.device:
        raise InputError(f"q, k and v are on one device, got {q.device}, {k.device} and {v.device}")
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise InputError(f"q, k and v have one batch size, got {q.shape[0]}, {k.shape[0]} and {v.shape[0]}")
    if k.shape[:-1] != v.shape[:-1]:
        raise InputError(f"k and v have one grid and as many heads, got {shape_of(k)} and {shape_of(v)}")
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
    if isinstance(bias, RelativeBias):
        bias.check(q.shape[-2], len(query_grid), q)
        if len(query_grid) != len(key_grid):
            raise InputError(
                f"a relative bias takes grids of equally many axes, got {query_grid} and {key_grid}"
            )
    elif bias is not None:
        full = (q.shape[0], q.shape[-2], math.prod(query_grid), math.prod(key_grid))
        fits = bias.ndim <= 4 and all(a in (1, b) for a, b in zip(bias.shape[::-1], full[::-1], strict=False))
        if not fits:
            raise InputError(f"bias has a shape that broadcasts to {full}, got {shape_of(bias)}")
        if bias.dtype != q.dtype or bias.device != q.device:
            raise InputError(f"bias has the dtype and device of q, got {bias.dtype} on {bias.device}")
    if grad is None:
        wanted = [q, k, v, *([bias.table] if isinstance(bias, RelativeBias) else [])]
        grad = torch.is_grad_enabled() and any(x.requires_grad for x in wanted)
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
        relative=isinstance(bias, RelativeBias),
        lse=lse,
        grad=grad,
    )


def able_of(request: Request) -> tuple[list[str], dict[str, str]]:
    """Kernels that can run a request, and why the others cannot."""
    refusals = {name: kernel.refusal(request) for name, kernel in KERNELS.items()}
    able = [name for name, reason in refusals.items() if reason is None]
    return able, {name: reason for name, reason in refusals.items() if reason is not None}


def fastest_of(request: Request, able: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The kernel of least estimated time; flex, where it can run, is taken on GPUs."""
    if request in _MEASURED:
        seconds = _MEASURED[request]
        return min(seconds, key=seconds.__getitem__), seconds
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
    bias: Bias = None,
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
    q = crop(q, k, pattern)
    request = request_of(q, k, v, pattern, bias, return_lse, grad)
    able, refusals = able_of(request)
    fastest, seconds = fastest_of(request, able)
    chosen = fastest if kernel == "auto" else named(kernel, refusals)
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


def bias_of(name: str, bias: Bias, request: Request) -> Bias:
    """The bias as a kernel takes it."""
    if isinstance(bias, RelativeBias) and not KERNELS[name].relative:
        return bias.dense(request.query_grid, request.key_grid)
    return bias


def named(kernel: str, refusals: dict[str, str]) -> str:
    """The kernel of a name, if it is one and can run."""
    if kernel not in KERNELS:
        raise InputError(f"kernel is 'auto' or one of {', '.join(KERNELS)}; got {kernel!r}")
    if kernel in refusals:
        raise InputError(f"kernel {kernel!r} cannot run this: {refusals[kernel]}")
    return kernel


def crop(q: Tensor, k: Tensor, pattern: Pattern) -> Tensor:
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


def measure(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | None = None,
    *,
    bias: Bias = None,
    return_lse: bool = False,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Time every kernel that can run a call; `plan` and `attend` then go by it for calls of the same kind.

    Calls are of a kind if they agree in pattern, sizes, dtype, device, bias, log-sum-exp and gradients. What
    is found is kept until the process ends. 'reference' takes part only where no other kernel can run.

    Args:
        q: as in `attend`; with `requires_grad` the backward pass is timed too.
        k: likewise.
        v: likewise.
        pattern: who sees whom.
        bias: as in `attend`.
        return_lse: as in `attend`.
        repeats: timed runs of each kernel, after one to warm up; the shortest counts.
        clock: what tells the time, in seconds.

    Returns:
        Seconds of each kernel.

    Raises:
        InputError: as `attend`, or if `repeats` is below one.
    """
    if repeats < 1:
        raise InputError(f"repeats is at least 1, got {repeats}")
    pattern = Everything() if pattern is None else pattern
    q = crop(q, k, pattern)
    request = request_of(q, k, v, pattern, bias, return_lse, None)
    able, _ = able_of(request)
    times = {}
    for name in [name for name in able if name != "reference"] or able:
        taken = []
        for _ in range(repeats + 1):
            query, key, value = (x.detach().requires_grad_(x.requires_grad) for x in (q, k, v))
            start = clock()
            scale = request.head_dim**-0.5
            out = KERNELS[name].run(query, key, value, request, scale, bias_of(name, bias, request))[0]
            if request.grad:
                out.backward(torch.ones_like(out))
            if out.is_cuda:
                torch.cuda.synchronize(out.device)
            taken.append(clock() - start)
        times[name] = min(taken[1:])
    _MEASURED[request] = times
    return times
