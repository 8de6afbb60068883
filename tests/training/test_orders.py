"""Sample orders are functions of seed and epoch; seeds repeat everything; logs hold what they are given."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyhead.errors import InputError
from manyhead.training import (
    grouped,
    mixed_tasks,
    seed_everything,
    seeded,
    sequential,
    shuffled,
    warmup_cosine,
    weighted,
)
from manyhead.training.logs import table
from manyhead.training.order import batches
from manyhead.training.seeds import random_state, set_random_state


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 9))
def test_an_order_holds_every_sample_once_and_repeats(samples: int, epoch: int, seed: int) -> None:
    groups = [index % 5 for index in range(samples)]
    for order in (shuffled, sequential, grouped(groups)):
        found = order(samples, epoch, seed)
        assert sorted(found.tolist()) == list(range(samples))
        assert torch.equal(found, order(samples, epoch, seed))
    assert torch.equal(sequential(samples, epoch, seed), torch.arange(samples))


def test_epochs_and_seeds_give_different_orders() -> None:
    orders = {tuple(shuffled(30, epoch, seed).tolist()) for epoch in range(20) for seed in range(20)}
    assert len(orders) == 400


def test_an_order_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    shuffled(30, 1, 1)
    weighted([1.0] * 30)(30, 1, 1)
    grouped([0, 1] * 15)(30, 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_stay_together_and_are_shuffled() -> None:
    groups = torch.tensor([7, 3, 7, 9, 3, 9, 9, 7])
    firsts = set()
    for epoch in range(30):
        labels = groups[grouped(groups)(8, epoch, 0)].tolist()
        changes = sum(a != b for a, b in itertools.pairwise(labels))
        assert changes == 2
        firsts.add(labels[0])
    assert firsts == {3, 7, 9}


def test_weighted_draws_follow_the_weights() -> None:
    draws = weighted([0.0, 1.0, 3.0], draws=20_000)(3, 0, 0)
    shares = torch.bincount(draws, minlength=3) / len(draws)
    assert shares[0] == 0
    # three standard errors of a share of 3/4
    assert float(shares[2]) == pytest.approx(0.75, abs=3 * (0.75 * 0.25 / 20_000) ** 0.5)


def test_batches_cut_an_order() -> None:
    parts = batches(torch.arange(10), 4)
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [len(part) for part in batches(torch.arange(10), 4, drop_last=True)] == [4, 4]
    assert [len(part) for part in batches(torch.arange(3), 4, drop_last=True)] == [3]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: weighted([1.0, -1.0]), "weights must be one finite number"),
        (lambda: weighted([0.0, 0.0]), "not all zero"),
        (lambda: weighted([1.0, float("nan")]), "finite"),
        (lambda: weighted([1.0])(2, 0, 0), "one number for each of 2 samples, got 1"),
        (lambda: grouped([1])(2, 0, 0), "one label for each of 2 samples, got 1"),
        (lambda: warmup_cosine(-1), "warmup must not be negative"),
        (lambda: warmup_cosine(0, 2.0), "floor lie in 0..1"),
        (lambda: seed_everything(-1), r"seed must lie in 0..2\*\*32-1, got -1"),
        (lambda: seed_everything(2**32), "seed must lie"),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def draw() -> tuple[float, float, float, float]:
    return random.random(), random.gauss(0, 1), float(np.random.standard_normal()), float(torch.randn(()))  # noqa: NPY002


def test_a_seed_repeats_every_generator_and_a_state_restores_it() -> None:
    seed_everything(5)
    first = draw()
    state = random_state()
    second = draw()
    seed_everything(5)
    assert draw() == first
    assert draw() == second
    set_random_state(state)
    assert draw() == second
    assert first != second


def test_a_seeded_block_gives_the_states_back_even_after_an_error() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)

    def fails() -> None:
        with seeded(9):
            draw()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert draw() == expected


def test_the_table_has_a_column_for_every_name() -> None:
    text = table([{"epoch": 1, "a": 0.5}, {"epoch": 2, "a": 0.25, "b": 1e-9}])
    assert text == "epoch,a,b\n1,0.5,\n2,0.25,1e-09\n"


def test_schedules_are_values() -> None:
    schedule = warmup_cosine(0.25, floor=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = schedule.build(optimizer, 8)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:3] == pytest.approx([1.0, 2.0, 2.0])
    assert rates[8] == pytest.approx(0.2)
    assert schedule.every == "step"


def test_mixed_tasks_puts_every_task_into_every_batch_in_its_share() -> None:
    # 60 samples of 'common', 6 of 'rare', 3 of both
    common, rare = torch.arange(63) < 60, torch.arange(63) >= 57
    labelled = {"common": common, "rare": rare}
    for temperature, quota in ((1.0, 2), (float("inf"), 5)):
        rows = mixed_tasks(labelled, 10, temperature)(63, 0, 3).reshape(7, 10)
        own = rows[:, 10 - quota :]
        assert rare[own].all()
        assert common[rows[:, : 10 - quota]].all()
        # a stream shows every sample before it begins anew
        assert set(own.flatten()[:6].tolist()) == {57, 58, 59, 60, 61, 62}
    whole = mixed_tasks(labelled, 10)
    assert torch.equal(whole(63, 1, 3), whole(63, 1, 3))
    assert not torch.equal(whole(63, 1, 3), whole(63, 2, 3))
    assert not torch.equal(whole(63, 1, 3), whole(63, 1, 4))


def test_mixed_tasks_begins_a_short_stream_anew_with_each_sample_as_often() -> None:
    labelled = {"a": torch.ones(40, dtype=torch.bool), "b": torch.arange(40) < 4}
    rows = mixed_tasks(labelled, 8, float("inf"))(40, 0, 0).reshape(5, 8)[:, 4:]
    assert torch.bincount(rows.flatten(), minlength=4).tolist() == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mixed_tasks({"a": torch.zeros(4, dtype=torch.bool)}, 4), r"labelled\['a'\] is False every"),
        (lambda: mixed_tasks({}, 4), "at least the number of tasks, 0, with at least one; got 4"),
        (
            lambda: mixed_tasks({n: torch.ones(4, dtype=torch.bool) for n in "abc"}, 2),
            "at least the number of tasks, 3, with at least one; got 2",
        ),
        (
            lambda: mixed_tasks({"a": torch.ones(4, dtype=torch.bool)}, 2, 0.0),
            "temperature must be above zero",
        ),
        (
            lambda: mixed_tasks({"a": torch.ones(4, dtype=torch.bool)}, 2)(5, 0, 0),
            "one entry for each of 5 samples, got 4",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()
