"""Rings of threads equal one process: every pattern, layout and engine, gradients included."""

import pytest
import torch
from torch import nn

from manyhead.attention import attend
from manyhead.kernels.ring import ring_attend
from manyhead.kernels.rings import LostPeer, Ring, ThreadRing, in_threads, sum_gradients
from manyhead.kernels.shards import positions, schedule, shard, unshard
from manyhead.pattern import Causal, Everything, Explicit, GridPartition, Pattern, Prefix, Window

PATTERNS = [
    Everything(),
    Causal(),
    Window(5),
    Window(5, 2, 2),
    Window(4, border="wrap"),
    Window(6, causal=True) | Prefix(3),
    GridPartition(4),
]


def both(pattern: Pattern, world: int, layout: str, engine: str, tokens: int = 24, heads: int = 4) -> float:
    """Largest difference of output, log-sum-exp and gradients from one process."""
    torch.manual_seed(0)
    q, k, v, g = (
        torch.randn(2, tokens, n, 4, dtype=torch.float64) for n in (heads * 2, heads, heads, heads * 2)
    )
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = attend(*whole, pattern, kernel="reference", return_lse=True)
    wanted = [out, lse, *torch.autograd.grad((out * g).sum() + lse.sum(), whole)]

    def work(ring: Ring) -> list[torch.Tensor]:
        mine = [shard(x, ring.rank, world, layout).requires_grad_() for x in (q, k, v)]  # type: ignore[arg-type]
        out, lse = ring_attend(
            *mine,
            pattern,
            tokens,
            ring=ring,
            layout=layout,
            engine=engine,
            return_lse=True,  # type: ignore[arg-type]
        )
        total = (out * shard(g, ring.rank, world, layout)).sum() + lse.sum()  # type: ignore[arg-type]
        return [out.detach(), lse.detach(), *torch.autograd.grad(total, mine)]

    found = [unshard(list(part), layout) for part in zip(*in_threads(world, work), strict=True)]  # type: ignore[arg-type]
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_every_pattern_and_layout_equals_one_process(pattern: Pattern, layout: str) -> None:
    assert both(pattern, 3, layout, "native") < 1e-10


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("engine", ["native", "rsa", "all-gather", "ulysses"])
def test_every_engine_and_size_equals_one_process(world: int, engine: str) -> None:
    assert both(Causal(), world, "zigzag", engine, heads=8) < 1e-10


def test_tokens_that_do_not_divide() -> None:
    assert both(Window(5), 4, "zigzag", "native", tokens=27) < 1e-10


def test_a_grid_of_two_axes_in_a_ring() -> None:
    q, k, v = (torch.randn(1, 30, 2, 4, dtype=torch.float64) for _ in range(3))
    pattern, grid = Window((3, 3)), (5, 6)
    whole = attend(*(x.reshape(1, 5, 6, 2, 4) for x in (q, k, v)), pattern)

    def work(ring: Ring) -> torch.Tensor:
        return ring_attend(*(shard(x, ring.rank, 3) for x in (q, k, v)), pattern, grid, ring=ring)  # type: ignore[no-any-return]

    assert (unshard(in_threads(3, work)) - whole.flatten(1, 2)).abs().max() < 1e-12


def test_shards_come_back_in_order() -> None:
    x = torch.arange(13)[None]
    for layout in ("contiguous", "zigzag", "striped"):
        assert torch.equal(unshard([shard(x, r, 3, layout) for r in range(3)], layout), x)
        assert sorted(torch.cat([torch.as_tensor(p) for p in positions(13, 3, layout)]).tolist()) == [
            *range(13)
        ]


def test_zigzag_balances_causal_work() -> None:
    assert schedule(Causal(), 512, 4, "contiguous").imbalance == pytest.approx(1.75, abs=0.01)
    assert schedule(Causal(), 512, 4, "zigzag").imbalance == pytest.approx(1.0, abs=1e-6)
    assert schedule(Causal(), 512, 4, "striped").imbalance < 1.02


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: type(p).__name__)
def test_the_schedule_counts_every_pair(pattern: Pattern) -> None:
    found = schedule(pattern, 24, 3)
    assert int(found.work.sum()) == pattern.pairs(24)
    mask, spread = pattern.mask(24), positions(24, 3)
    assert found.pairs[1, 2] == int(mask[spread[1]][:, spread[2]].sum())
    assert "3 processes" in found.describe()


def test_a_ring_sends_each_key_and_value_once_around() -> None:
    q = torch.randn(2, 8, 4, 8)

    def work(ring: Ring) -> int:
        ring_attend(q, q, q, grid=32, ring=ring)
        return ring.sent

    assert in_threads(4, work) == [2 * 3 * q.numel() * 4] * 4  # 2 (N - 1) B s Z A elements of 4 bytes


def test_a_later_token_on_another_process_changes_nothing_before_it() -> None:
    x = torch.randn(1, 16, 2, 4)
    later = x.clone()
    later[:, 12:] += 1.0

    def run(x: torch.Tensor) -> torch.Tensor:
        def work(ring: Ring) -> torch.Tensor:
            part = shard(x, ring.rank, 4, "striped")
            return ring_attend(part, part, part, Causal(), 16, ring=ring, layout="striped")  # type: ignore[no-any-return]

        return unshard(in_threads(4, work), "striped")

    assert torch.equal(run(x)[:, :12], run(later)[:, :12])


def test_large_scores_do_not_overflow() -> None:
    q = torch.full((1, 4, 1, 4), 100.0)

    def work(ring: Ring) -> torch.Tensor:
        return ring_attend(q * (1 - 2 * ring.rank), q, q, ring=ring, scale=1.0)  # type: ignore[no-any-return]

    for out in in_threads(2, work):
        assert torch.isfinite(out).all()


def test_parameter_gradients_are_those_of_one_process() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(8, 24)
    x, target = torch.randn(1, 12, 8), torch.randn(1, 12, 8)

    def loss(layer: nn.Linear, x: torch.Tensor, target: torch.Tensor, attention: object) -> torch.Tensor:
        q, k, v = layer(x).unflatten(-1, (3, 2, 4)).unbind(2)
        return ((attention(q, k, v).flatten(2) - target) ** 2).sum() / 96  # type: ignore[operator]

    loss(linear, x, target, lambda *a: attend(*a, Causal())).backward()
    wanted = [p.grad.clone() for p in linear.parameters() if p.grad is not None]

    def work(ring: Ring) -> list[torch.Tensor]:
        copy = nn.Linear(8, 24)
        copy.load_state_dict(linear.state_dict())
        mine = [shard(part, ring.rank, ring.size) for part in (x, target)]
        loss(copy, *mine, lambda *a: ring_attend(*a, Causal(), 12, ring=ring)).backward()
        sum_gradients(list(copy.parameters()), ring)
        return [p.grad for p in copy.parameters() if p.grad is not None]

    for found in in_threads(3, work):
        for a, b in zip(found, wanted, strict=True):
            assert (a - b).abs().max() < 1e-5


def test_a_missing_neighbour_is_named() -> None:
    import queue

    mail = [[queue.Queue() for _ in range(2)] for _ in range(2)]
    x = torch.zeros(1, 4, 1, 4)
    with pytest.raises(LostPeer, match=r"thread 0 waited 0\.05 s for thread 1"):
        ring_attend(x, x, x, Explicit(torch.ones(8, 8).bool()), 8, ring=ThreadRing(0, mail, timeout=0.05))
