"""From a preference over tasks and a budget to the widths of a controllable network.

'Efficient Controllable Multi-Task Architectures', 2023, arXiv 2308.11744. The paper's rule: a task that is
preferred never has a narrower decoder than one that is less so; the encoder takes what the budget leaves. How
far apart decoders are, and how the encoder is searched, the paper leaves open; here

- decoder t has the ratio nearest to `r_min + (1 - r_min) p_t / p_max`; while the decoders leave too little
  for the smallest encoder, all step down together by one ratio;
- of the encoders within the budget the one of the best score is taken: among one ratio for all stages, or
  `layerwise` among all combinations, by trying each where they are few, else by an evolutionary search.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from manyhead.errors import InputError
from manyhead.networks.controllable import SuperNet, Widths
from manyhead.networks.small_multitask import SmallMultiTask, calibrate

POPULATION, GENERATIONS, MUTATION, CROSSOVER = 50, 20, 0.1, 0.5
Encoder = tuple[float, ...]


class WidthSearch:
    """Choose widths, and remember what was tried.

    Args:
        supernet: the trained network.
        score: how good a sub-network is, higher is better, such as the mean accuracy on held-out images; the
            multiply-adds if left out, so that the largest encoder is taken.
        calibration: images `(n, inputs, h, w)` on which the statistics of batch normalisation of every
            candidate, and of what is extracted, are computed anew. Needed for norm 'batch'.
        layerwise: whether each stage of the encoder has a ratio of its own.
        most: try every encoder where there are so many at most.
        seed: of the evolutionary search.

    Raises:
        InputError: if norm is 'batch' and there is no calibration.
    """

    def __init__(
        self,
        supernet: SuperNet,
        score: Callable[[SmallMultiTask], float] | None = None,
        *,
        calibration: Tensor | None = None,
        layerwise: bool = False,
        most: int = 256,
        seed: int = 0,
    ) -> None:
        if supernet.norm == "batch" and calibration is None:
            raise InputError("norm='batch' needs calibration images for the statistics of a sub-network")
        self.supernet, self.score, self.calibration = supernet, score, calibration
        self.layerwise, self.most, self.seed = layerwise, most, seed
        self.tried: dict[Widths, float] = {}

    def find(self, preference: Mapping[str, float], budget: float) -> Widths:
        """The widths for a preference and a budget of multiply-adds.

        Raises:
            InputError: if a task is missing, a preference is negative, or the smallest network costs more.
        """
        net = self.supernet
        wanted = nearest_ratios(check_preference(preference, net.tasks), net.decoder_widths)
        least = net.smallest
        if net.cost(least) > budget:
            raise InputError(
                f"budget must be at least the smallest network's {net.cost(least)} multiply-adds, "
                f"got {budget:g}"
            )
        while net.cost(Widths(least.encoder, wanted)) > budget:
            wanted = tuple(one_down(ratio, net.decoder_widths) for ratio in wanted)
        return self.best_encoder(wanted, budget)

    def extract(self, preference: Mapping[str, float], budget: float) -> SmallMultiTask:
        """The small network of `find`, calibrated if there are images for it."""
        return self.cut(self.find(preference, budget))

    def cut(self, widths: Widths) -> SmallMultiTask:
        """The small network of some widths, in evaluation mode."""
        small = self.supernet.cut(widths).eval()
        if self.calibration is not None:
            calibrate(small, self.calibration)
        return small

    def best_encoder(self, decoders: tuple[float, ...], budget: float) -> Widths:
        """The best encoder within the budget above decoders of given ratios."""
        net = self.supernet
        ratios, stages = net.encoder_widths, len(net.stages)
        if not self.layerwise:
            every = [(ratio,) * stages for ratio in ratios]
        elif len(ratios) ** stages <= self.most:
            every = list(itertools.product(ratios, repeat=stages))
        else:
            return self._evolve(decoders, budget)
        fitting = [w for encoder in every if net.cost(w := Widths(encoder, decoders)) <= budget]
        return max(fitting, key=lambda widths: (self._score(widths), net.cost(widths)))

    def _score(self, widths: Widths) -> float:
        if widths not in self.tried:
            if self.score is None:
                self.tried[widths] = float(self.supernet.cost(widths))
            else:
                self.tried[widths] = float(self.score(self.cut(widths)))
        return self.tried[widths]

    def _evolve(self, decoders: tuple[float, ...], budget: float) -> Widths:
        """The best of an evolution: the better half stays, its children are crossed and mutated."""
        net, generator = self.supernet, torch.Generator().manual_seed(self.seed)
        ratios, stages = net.encoder_widths, len(net.stages)

        def chance() -> float:
            return float(torch.rand((), generator=generator))

        def pick(values: Sequence[float]) -> float:
            return values[int(torch.randint(len(values), (), generator=generator))]

        def fit(encoder: list[float]) -> Encoder:
            # one stage after another steps down until the budget holds
            while net.cost(Widths(tuple(encoder), decoders)) > budget:
                wide = [i for i, ratio in enumerate(encoder) if ratio > ratios[0]]
                place = wide[int(torch.randint(len(wide), (), generator=generator))]
                encoder[place] = one_down(encoder[place], ratios)
            return tuple(encoder)

        people = [(ratios[0],) * stages]
        people += [fit([pick(ratios) for _ in range(stages)]) for _ in range(POPULATION - 1)]
        for _ in range(GENERATIONS):
            people = sorted(set(people), key=lambda e: -self._score(Widths(e, decoders)))[: POPULATION // 2]
            children: list[Encoder] = []
            while len(people) + len(children) < POPULATION:
                pair = torch.randint(len(people), (2,), generator=generator).tolist()
                first = people[pair[0]]
                second = people[pair[1]] if chance() < CROSSOVER else first
                child = [pick(both) for both in zip(first, second, strict=True)]
                children.append(fit([pick(ratios) if chance() < MUTATION else ratio for ratio in child]))
            people += children
        return max(
            (Widths(encoder, decoders) for encoder in people),
            key=lambda widths: (self._score(widths), net.cost(widths)),
        )


def check_preference(preference: Mapping[str, float], tasks: Sequence[str]) -> list[float]:
    """Preferences in the order of the tasks.

    Raises:
        InputError: if a task is missing or unknown, one is negative or not finite, or all are zero.
    """
    if set(preference) != set(tasks):
        raise InputError(f"preference must name the tasks {', '.join(tasks)}, got {', '.join(preference)}")
    values = [float(preference[task]) for task in tasks]
    if any(not math.isfinite(value) or value < 0 for value in values) or not any(values):
        raise InputError(f"preferences must be finite, not negative and not all zero, got {dict(preference)}")
    return values


def nearest_ratios(preference: Sequence[float], ratios: Sequence[float]) -> tuple[float, ...]:
    """For each task the ratio nearest to `r_min + (1 - r_min) p / p_max`, the larger of two as near."""
    most = max(preference)
    wanted = [ratios[0] + (1 - ratios[0]) * value / most for value in preference]
    return tuple(min(ratios, key=lambda ratio: (abs(ratio - want), -ratio)) for want in wanted)


def one_down(ratio: float, ratios: Sequence[float]) -> float:
    """The next smaller ratio, or the smallest."""
    return ratios[max(0, list(ratios).index(ratio) - 1)]
