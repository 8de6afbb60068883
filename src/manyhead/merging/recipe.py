"""A recipe: which merging, with which numbers, and what one slab of weights becomes under it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.merging.masks import consensus_mask, tall_mask
from manyhead.merging.ties import Combine, combine, elect, trim_rank
from manyhead.merging.vectors import total

Method = Literal["average", "arithmetic", "ties", "consensus", "tall-masks", "magnitude-masks"]
KEEP = {"arithmetic": 100.0, "ties": 20.0, "magnitude-masks": 10.0}
ALPHA = {"arithmetic": 0.3, "consensus": 0.3}  # a usual value; search it where there are validation data


@dataclass(frozen=True)
class Recipe:
    """How models are merged.

    Args:
        method: 'average'; 'arithmetic' (base + alpha x sum of task vectors); 'ties'; 'consensus' (keep
            weights that at least `at_least` tasks use); 'tall-masks' or 'magnitude-masks' (base, one
            vector and a bit mask a task, from which every model is rebuilt).
        alpha: scaling of the merged vector; None takes 0.3 (arithmetic, consensus) or 1 (ties).
        keep: per cent of each task vector kept by magnitude; None takes 20 (ties), 10
            (magnitude-masks), 100 (arithmetic).
        how: how TIES combines agreeing entries: 'mean', 'sum' or 'max'.
        on: what TALL masks and Consensus are computed on: 'arithmetic' or 'ties' (summed).
        lam: thresholds of the TALL masks, one for all tasks or one a task.
        at_least: Consensus keeps the weights that so many tasks use.
        exact: keep exactly the asked share when trimming, instead of one entry more.
        exclude: shell patterns of tensors that stay the base's own, such as 'head.*'.

    Raises:
        InputError: if a number is out of its range or a name is unknown.
    """

    method: Method
    alpha: float | None = None
    keep: float | None = None
    how: Combine = "mean"
    on: Literal["arithmetic", "ties"] = "arithmetic"
    lam: tuple[float, ...] = (0.4,)
    at_least: int = 2
    exact: bool = False
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("method", self.method, get_args(Method)),
            ("how", self.how, get_args(Combine)),
            ("on", self.on, ("arithmetic", "ties")),
        ):
            if value not in accepted:
                raise InputError(f"{name} is one of {', '.join(accepted)}; got {value!r}")
        if self.keep is not None:
            trim_rank(1, self.keep)
        if not self.lam or min(self.lam) < 0:
            raise InputError(f"lambda must be at or above 0, got {list(self.lam)}")
        if self.alpha is not None and not abs(self.alpha) < float("inf"):
            raise InputError(f"alpha must be a finite number, got {self.alpha}")

    def check(self, tasks: int) -> None:
        """Refuse what cannot fit this number of tasks.

        Raises:
            InputError: if the thresholds are not one or one a task, or Consensus would drop everything.
        """
        if len(self.lam) not in (1, tasks):
            raise InputError(
                f"{len(self.lam)} lambdas were given for {tasks} models; give one, or one a model"
            )
        if self.method == "consensus" and not 0 <= self.at_least <= tasks:
            raise InputError(
                f"the consensus mask would be empty: it asks for {self.at_least} of {tasks} tasks; "
                f"at_least is 0 to {tasks}"
            )

    @property
    def scale(self) -> float:
        """Scaling of the merged vector."""
        return ALPHA.get(self.method, 1.0) if self.alpha is None else self.alpha

    @property
    def kept(self) -> float:
        """Per cent of each task vector that trimming keeps."""
        method = "ties" if self.elects else self.method
        return KEEP.get(method, 100.0) if self.keep is None else self.keep

    @property
    def elects(self) -> bool:
        """Whether signs are elected, as TIES does."""
        on_masks = self.method in ("consensus", "tall-masks")
        return self.method == "ties" or (on_masks and self.on == "ties")

    @property
    def masked(self) -> bool:
        """Whether the result is base, vector and masks instead of one model."""
        return self.method in ("tall-masks", "magnitude-masks")

    def as_dict(self) -> dict[str, Any]:
        """The recipe with every default filled in, for headers, journals and receipts."""
        return asdict(self) | {"alpha": self.scale, "keep": self.kept}

    def merge(
        self, vectors: Sequence[Tensor], thresholds: Sequence[float], majority: float
    ) -> tuple[Tensor, list[Tensor]]:
        """Merge one slab of the task vectors.

        Args:
            vectors: task vectors of the slab, each (n,).
            thresholds: smallest magnitude that trimming keeps, one a task, over the whole vectors.
            majority: sign of the sum of all elected signs, over the whole vectors.

        Returns:
            The merged vector (n,) before scaling, and the masks of the tasks, each (n,) Boolean; no
            masks where the method has none.
        """
        trims = self.kept < 100 and self.method != "magnitude-masks"
        trimmed = (
            [torch.where(v.abs() >= t, v, 0.0) for v, t in zip(vectors, thresholds, strict=True)]
            if trims
            else list(vectors)
        )
        if self.method == "average":
            return total(trimmed) / len(trimmed), []
        if self.method == "ties":
            return combine(trimmed, elect(trimmed, majority), self.how), []
        merged = combine(trimmed, elect(trimmed, majority), "sum") if self.elects else total(trimmed)
        if self.method == "arithmetic":
            return merged, []
        if self.method == "magnitude-masks":
            return merged, [v.abs() >= t for v, t in zip(vectors, thresholds, strict=True)]
        lams = self.lam * len(vectors) if len(self.lam) == 1 else self.lam
        masks = [tall_mask(v, merged, lam) for v, lam in zip(vectors, lams, strict=True)]
        if self.method == "consensus":
            merged = merged * consensus_mask(masks, self.at_least)
        return merged, masks
