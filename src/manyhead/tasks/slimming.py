"""Training of a network that is to work at any width: the sandwich rule, and distillation into the encoder.

'Efficient Controllable Multi-Task Architectures', 2023, arXiv 2308.11744, on the rule of Yu and Huang, 2019,
arXiv 1903.05134: every step runs the whole network, the smallest sub-network and some random ones. The
configuration-invariant distillation pulls the encoder's maps at any width to those at full width, which
conflicts the least. Maps differ in channels, and the paper does not tell how they are compared; three ways
are offered.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from manyhead.errors import InputError

Comparison = Literal["slice", "attention", "gram"]


def slice_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square between the student's channels and the teacher's first ones, each position of length 1.

    Args:
        student: `(batch, channels, ...)`.
        teacher: `(batch, as many channels or more, ...)`.
    """
    return mse_loss(normalize(student, dim=1), normalize(teacher[:, : student.shape[1]], dim=1))


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of where activations are strong, mean over samples; channels do not matter."""

    def strength(feature: Tensor) -> Tensor:
        return normalize(feature.square().mean(1).flatten(1), dim=1)

    return (strength(student) - strength(teacher)).square().sum(1).mean()


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the samples' similarities with each other, over batch^2."""

    def alike(feature: Tensor) -> Tensor:
        flat = feature.flatten(1)
        return normalize(flat @ flat.T, dim=1)

    return (alike(student) - alike(teacher)).square().sum() / len(student) ** 2


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "slice": slice_distance,
    "attention": attention_distance,
    "gram": gram_distance,
}


def distillation(
    student: Sequence[Tensor], teacher: Sequence[Tensor], comparison: Comparison = "slice"
) -> Tensor:
    """Mean distance of an encoder's maps from those at full width, through which no gradient goes.

    Args:
        student, teacher: maps `(batch, channels, h, w)` of the same stages.
        comparison: 'slice', 'attention' or 'gram'.

    Returns:
        a scalar, 0 where both are the same.
    """
    distance = DISTANCES[comparison]
    parts = [distance(ours, theirs.detach()) for ours, theirs in zip(student, teacher, strict=True)]
    return torch.stack(parts).mean()


class Sandwich:
    """The losses of one step of a controllable network, as `fit` takes them.

    The losses of a task at all widths are added up; the distillation is one more loss, 'distillation'.
    Batches are those of `MultiTask`: 'inputs' and 'targets'.

    Args:
        losses: by task, from prediction and target to a scalar.
        strength: weight of the distillation (lambda); 0 leaves it out.
        comparison: how maps of different widths are compared: 'slice', 'attention' or 'gram'.
        stages: which stages of the encoder are distilled; all if left out.
        others: random sub-networks of each step, beside the smallest.
        layerwise: whether each stage of a random encoder has a ratio of its own.
        weights: by task, 1 if left out.
        predictions: weight of the mean square between a sub-network's predictions and the whole network's.

    Raises:
        InputError: if an argument cannot be used.
    """

    def __init__(
        self,
        losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
        *,
        strength: float = 1.0,
        comparison: Comparison = "slice",
        stages: Sequence[int] | None = None,
        others: int = 2,
        layerwise: bool = False,
        weights: Mapping[str, float] | None = None,
        predictions: float = 0.0,
    ) -> None:
        if not losses or not set(weights or {}) <= set(losses):
            raise InputError(f"losses must name a task, and those of weights; got {losses}, {weights}")
        if strength < 0 or predictions < 0 or others < 0:
            raise InputError(
                "strength, predictions and others must not be negative, got "
                f"{strength}, {predictions}, {others}"
            )
        if comparison not in DISTANCES:
            raise InputError(f"comparison must be one of {', '.join(DISTANCES)}, got {comparison!r}")
        self.losses, self.strength, self.comparison = dict(losses), strength, comparison
        self.stages, self.others, self.layerwise = stages, others, layerwise
        self.weights, self.predictions = dict(weights or {}), predictions

    def __call__(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Losses of a `SuperNet` on one batch, by task."""
        image, targets = batch["inputs"], batch["targets"]
        size = (image.shape[-2], image.shape[-1])
        maps = model.encode(image)
        whole = model.decode(maps[-1], size)
        total = {task: self._loss(task, whole[task], target) for task, target in targets.items()}
        teacher = [one.detach() for one in self._chosen(maps)]
        extra = []
        # a network of one width alone is trained as any other
        narrow = [] if model.smallest == model.full else [model.smallest]
        narrow += [model.random(layerwise=self.layerwise) for _ in range(self.others if narrow else 0)]
        for widths in narrow:
            maps = model.encode(image, widths)
            found = model.decode(maps[-1], size, widths)
            for task, target in targets.items():
                total[task] = total[task] + self._loss(task, found[task], target)
                if self.predictions:
                    extra.append(self.predictions * mse_loss(found[task], whole[task].detach()))
            if self.strength:
                extra.append(self.strength * distillation(self._chosen(maps), teacher, self.comparison))
        return total | ({"distillation": torch.stack(extra).sum()} if extra else {})

    def _loss(self, task: str, prediction: Tensor, target: Tensor) -> Tensor:
        return self.weights.get(task, 1.0) * self.losses[task](prediction, target)

    def _chosen(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(maps) if self.stages is None else [maps[stage] for stage in self.stages]
