"""Controls of a finished run: the leak canary at every fold, and a placebo; both are kept in its folder.

The canary needs no second training. What a model was trained on is compared bit by bit with what it would be
trained on if everything after a decision were different; then the trained model scores both, and both
tables are traded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from manyhead.stocks import learn
from manyhead.stocks.canary import REPLACEMENTS, Leak, check_pipeline
from manyhead.stocks.config import Config
from manyhead.stocks.folder import RunFolder
from manyhead.stocks.items import STOCKFORMER, Item
from manyhead.stocks.panel import Panel
from manyhead.stocks.placebo import placebo
from manyhead.stocks.splits import choose_splits
from manyhead.work import run_items

PLACEBO = "placebo.json"


@dataclass(frozen=True, order=True)
class Fold:
    """The canary on one split."""

    split: int

    def __str__(self) -> str:
        return f"canary on split {self.split}"

    @property
    def file(self) -> str:
        """Where the verdict is kept, inside the run's folder."""
        return f"canary/split-{self.split:03d}.json"


def check_folds(place: RunFolder, *, workers: int = 1, ray: str | None = None, progress: bool = True) -> None:
    """Send the canary through every split of a run whose pieces are done; splits checked before are kept.

    Args:
        place: folder of the run.
        workers: local processes.
        ray: address of a Ray cluster in place of local processes.
        progress: show what is running.
    """
    config, (panel, _) = place.config(), place.panel()
    left = [Fold(split) for split in choose_splits(config, panel.days)]
    left = [fold for fold in left if not (place.path / fold.file).exists()]
    work = partial(_check, str(place.path.resolve()))
    run_items(work, left, workers=workers, ray=ray, title="canary", progress=progress)


@lru_cache(maxsize=1)
def _opened(folder: str) -> tuple[Config, Panel, Mapping[str, str] | None]:
    place = RunFolder(Path(folder))
    return place.config(), *place.panel()


def _check(folder: str, fold: Fold) -> str:
    """Replace everything after the middle of the test span, three ways; keep what changed before it."""
    config, panel, sectors = _opened(folder)
    place = RunFolder(Path(folder))
    split = choose_splits(config, panel.days)[fold.split]
    row = (split.test.start + split.test.stop) // 2
    seed = config.training.seeds[0]
    selector, _ = learn.load(Item(fold.split, STOCKFORMER, seed).folder(place.path), config)
    leaks = check_pipeline(panel, split, config, sectors, rows=[row], seed=seed, selector=selector)
    place.write_json(
        fold.file,
        {
            "split": fold.split,
            "decision": str(panel.dates[row]),
            "replacements": list(REPLACEMENTS),
            "leaks": [_plain(leak) for leak in leaks],
        },
    )
    return "nothing changed" if not leaks else f"the future is read in {leaks[0].stage}"


def _plain(leak: Leak) -> dict[str, str]:
    return {name: str(value) for name, value in vars(leak).items()}


def canary_verdicts(place: RunFolder) -> list[dict[str, Any]]:
    """Read what the canary found, split by split; empty where it was not sent."""
    return [place.read_json(f"canary/{path.name}") for path in sorted((place.path / "canary").glob("*.json"))]


def run_placebo(place: RunFolder, runs: int, model: str = "ridge") -> None:
    """Run a baseline on permuted labels of the newest split, and keep the distribution.

    Args:
        place: folder of the run.
        runs: how many permutations, at least 2.
        model: which baseline.

    Raises:
        InputError: if `runs` is below 2 or there is no such baseline.
    """
    before = placebo_of(place)
    if before is not None and (before["model"], len(before["ic"])) == (model, runs):
        return
    config, (panel, sectors) = place.config(), place.panel()
    newest, split = max(choose_splits(config, panel.days).items())
    found = placebo(panel, split, config, sectors, model=model, runs=runs)
    content = {
        "split": newest,
        "model": model,
        "ic": found.ic.tolist(),
        "p_values": found.p_values.tolist(),
        "uniformity": found.uniformity,
        "error": found.error,
    }
    place.write_json(PLACEBO, content)


def placebo_of(place: RunFolder) -> dict[str, Any] | None:
    """Read the placebo of a run; None where there is none."""
    if not (place.path / PLACEBO).exists():
        return None
    content: dict[str, Any] = place.read_json(PLACEBO)
    return content
