"""Seeds: one number from which everything random follows."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from manyhead.errors import InputError


def seed_everything(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, so that a run on CPU repeats bit for bit.

    The same bits also need the same number of threads (`torch.set_num_threads`), since sums are split
    over threads. NumPy generators made by `default_rng` have seeds of their own.

    Args:
        seed: 0 to 2**32 - 1.
        deterministic: also ask torch for deterministic kernels, which accelerators need; slower.

    Raises:
        InputError: if the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must lie in 0..2**32-1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 the global generator is what users' data code draws from
    torch.manual_seed(seed)
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)


def random_state() -> dict[str, Any]:
    """The state of every global generator: Python, NumPy, torch and its accelerators."""
    version, words, normal = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": {"version": version, "words": np.array(words, np.uint32), "normal": normal},
        "numpy": {
            "kind": kind,
            "keys": np.asarray(keys),
            "position": position,
            "has_gauss": has_gauss,
            "gauss": gauss,
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put every global generator back to a state from `random_state`."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["normal"]))
    held = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        (held["kind"], held["keys"], held["position"], held["has_gauss"], held["gauss"])
    )
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator inside the block, and give the caller's states back after it."""
    before = random_state()
    seed_everything(seed)
    try:
        yield
    finally:
        set_random_state(before)
