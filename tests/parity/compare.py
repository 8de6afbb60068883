"""Load a golden file, run the comparison of its slug, and measure relative errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LIMIT = 1e-4  # largest relative error, float32


@dataclass(frozen=True)
class Error:
    """The largest relative error of one output: max |ours - official| / max |official|."""

    name: str
    value: float
    limit: float

    @property
    def within(self) -> bool:
        return self.value <= self.limit


class Golden(dict[str, Any]):
    """Arrays of a golden file by name; `config` is parsed from JSON."""

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose names begin with `prefix`, by the rest of their names."""
        return {name[len(prefix) :]: array for name, array in self.items() if name.startswith(prefix)}


def read(path: str | Path) -> Golden:
    """Read a golden `.npz`: no pickles, scalars as Python values, `config` from its JSON text."""
    arrays = Golden()
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            arrays[name] = archive[name]
    if "config" in arrays:
        text = arrays["config"]
        text = text.item() if text.shape == () else text.tobytes()
        arrays["config"] = json.loads(text)
    return arrays


def relative_error(ours: Any, official: Any) -> float:
    """Largest |ours - official| over the largest |official|; NaN must stand where NaN stands.

    Integer, Boolean and text arrays must be equal: 0.0 if they are, infinity if they are not.
    """
    ours = ours.detach().cpu().numpy() if hasattr(ours, "detach") else np.asarray(ours)
    official = np.asarray(official)
    if ours.shape != official.shape:
        return float("inf")
    if official.dtype.kind not in "fc":
        return 0.0 if np.array_equal(ours, official) else float("inf")
    ours, official = ours.astype(np.float64), official.astype(np.float64)
    special = ~np.isfinite(official)
    if (
        not np.array_equal(ours[special], official[special], equal_nan=True)
        or not np.isfinite(ours[~special]).all()
    ):
        return float("inf")
    if special.all():
        return 0.0
    scale = np.abs(official[~special]).max()
    difference = np.abs(ours[~special] - official[~special]).max()
    return float(difference / scale) if scale > 0 else float(difference)


def compare(slug: str, path: str | Path | None = None) -> list[Error]:
    """Run `tests/parity/<slug>.py` on a golden file.

    The module has `run(arrays) -> dict name -> (ours, official)`, and may have `LIMITS`, a mapping of a
    name's beginning to a stricter limit than 1e-4.
    """
    module = import_module(f"tests.parity.{slug}")
    pairs: Mapping[str, tuple[Any, Any]] = module.run(read(path or GOLDEN / f"{slug}.npz"))
    limits: Mapping[str, float] = getattr(module, "LIMITS", {})
    errors = []
    for name, (ours, official) in pairs.items():
        limit = min([LIMIT, *(bound for start, bound in limits.items() if name.startswith(start))])
        errors.append(Error(name, relative_error(ours, official), limit))
    return errors
