"""MULTI-LANE on composites of digits: class-incremental learning with several labels an image.

De Min et al., 'Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental
Learning', 2024, arXiv 2405.15633. The network is `manyhead.networks.multi_lane`.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from manyhead.data.composites import Canvases, compose
from manyhead.data.stream import task_stream
from manyhead.networks.multi_lane import KeySelection, MultiLane, masked_loss
from manyhead.networks.vision_transformer import VisionTransformer
from manyhead.system import Measurement, System

TASKS = [list(stage.classes) for stage in task_stream(10, base=0, step=2)]
CANVASES, TEST = 3000, 1500
EPOCHS, PRETRAIN = 5, 8  # at the full budget


def average_precision(scores: Tensor, target: Tensor, classes: Sequence[int]) -> float:
    """Mean over classes of the average precision, of canvases that hold one of them."""
    from torchmetrics.functional.classification import binary_average_precision

    rows = target[:, list(classes)].any(1)
    found = [binary_average_precision(scores[rows, c].sigmoid(), target[rows, c].long()) for c in classes]
    return float(torch.stack(found).mean())


def train(
    model: nn.Module,
    canvases: Canvases,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    epochs: int,
    seed: int,
) -> None:
    """Train with a new Adam at a rate of 0.01 on a cosine, without weight decay."""
    from manyhead.training import fit

    def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"labels": loss(module, *batch)}

    def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    fit(
        model,
        canvases,
        losses=losses,
        batch_size=64,
        epochs=epochs,
        optimizer=partial(torch.optim.Adam, lr=0.01),
        schedule=cosine,
        seed=seed,
    )


class Classifier(nn.Module):
    """The transformer and a linear head on its class token."""

    def __init__(self, backbone: VisionTransformer) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(image)[:, 0])
        return logits


def pretrain(seed: int, epochs: int) -> VisionTransformer:
    """A small transformer, trained to name the digits of MNIST on composites, then frozen."""
    from manyhead import data
    from manyhead.training import fit

    mnist = data.load("mnist_10k")
    digits = torch.from_numpy(mnist["image"]).float()[:, None] / 255
    small = interpolate(digits, size=14, mode="bilinear", antialias=True)
    canvases = compose(small, torch.from_numpy(mnist["label"]).long(), 2 * CANVASES, seed)
    torch.manual_seed(seed)
    model = Classifier(VisionTransformer(28, 7, 1, channels=64, depth=4, heads=4, ratio=2))

    def losses(module: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"labels": binary_cross_entropy_with_logits(module(batch[0]), batch[1])}

    fit(
        model,
        canvases,
        losses=losses,
        batch_size=64,
        epochs=epochs,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        seed=seed,
    )
    return model.backbone.requires_grad_(False).eval()


def digits_canvases(seed: int) -> tuple[Canvases, Canvases]:
    """Training and test composites of optical digits, of different digits."""
    from manyhead import data

    found = data.load("digits")
    eight = torch.from_numpy(found["feature"]).float().reshape(-1, 1, 8, 8) / 16
    small = interpolate(eight, size=14, mode="bilinear")
    label = torch.from_numpy(found["target"]).long()
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    train_rows, test_rows = order[:1200], order[1200:]
    return (
        compose(small[train_rows], label[train_rows], CANVASES, seed + 1),
        compose(small[test_rows], label[test_rows], TEST, seed + 2),
    )


@dataclass
class Course:
    """mAP over the classes seen after each task, and of each task when it was learnt and at the end."""

    seen: list[float]
    fresh: list[float]
    last: list[float]

    @property
    def forgetting(self) -> float:
        """Mean fall of the earlier tasks' mAP from when they were learnt to the end."""
        return fmean(then - now for then, now in zip(self.fresh[:-1], self.last[:-1], strict=True))


def follow(learn: Callable[[int], None], logits: Callable[[int], Tensor], test: Canvases) -> Course:
    """Learn task after task; `logits(tasks)` scores the test canvases after so many tasks."""
    course = Course([], [], [])
    for number, own in enumerate(TASKS):
        learn(number)
        with torch.no_grad():
            scores = logits(number + 1)
        classes = [c for task in TASKS[: number + 1] for c in task]
        course.seen.append(average_precision(scores, test.target, classes))
        course.fresh.append(average_precision(scores, test.target, own))
    course.last = [average_precision(scores, test.target, own) for own in TASKS]
    return course


def lanes_course(
    backbone: VisionTransformer, training: Canvases, test: Canvases, epochs: int, seed: int
) -> tuple[Course, float, float]:
    """MULTI-LANE; also the mAP of the parallel and the selected read-out on canvases of several tasks."""
    torch.manual_seed(seed)
    model = MultiLane(deepcopy(backbone), TASKS, 4, 4, 2)
    keys = KeySelection(model)
    frozen_train, frozen_test = (backbone(part.image)[:, 0] for part in (training, test))

    def learn(task: int) -> None:
        if task:
            model.next_task(task)
        rows = training.target[:, TASKS[task]].any(1)

        def loss(module: nn.Module, image: Tensor, target: Tensor) -> Tensor:
            assert isinstance(module, MultiLane)
            return masked_loss(module.task_logits(image, task), target, TASKS[task])

        train(model, training.with_any(TASKS[task]), loss, epochs, seed + task)
        mine = Canvases(frozen_train[rows], training.target[rows])
        train(keys, mine, lambda module, frozen, _: keys.loss(frozen, task), epochs, seed + task)

    course = follow(learn, lambda tasks: model(test.image, tasks), test)
    with torch.no_grad():
        parallel = model(test.image)
        every = torch.stack([model.task_logits(test.image, task) for task in range(len(TASKS))], dim=1)
        chosen = keys.choose(frozen_test, len(TASKS))
        selected = every[torch.arange(len(chosen)), chosen]
    several = torch.stack([test.target[:, own].any(1) for own in TASKS]).sum(0) > 1
    kept = test.target[several]
    return (
        course,
        average_precision(parallel[several], kept, range(10)),
        average_precision(selected[several], kept, range(10)),
    )


def shared_course(
    backbone: VisionTransformer, training: Canvases, test: Canvases, epochs: int, seed: int
) -> Course:
    """One lane for all tasks, trained on one after the other."""
    torch.manual_seed(seed)
    model = MultiLane(deepcopy(backbone), [list(range(10))], 4, 4, 2)

    def learn(task: int) -> None:
        def loss(module: nn.Module, image: Tensor, target: Tensor) -> Tensor:
            assert isinstance(module, MultiLane)
            return masked_loss(module.task_logits(image, 0), target, TASKS[task])

        train(model, training.with_any(TASKS[task]), loss, epochs, seed + task)

    return follow(learn, lambda tasks: model(test.image), test)


def linear_course(
    backbone: VisionTransformer, training: Canvases, test: Canvases, epochs: int, seed: int
) -> Course:
    """A linear head of each task on the frozen class token."""
    torch.manual_seed(seed)
    head = nn.Linear(backbone.channels, 10)
    features = Canvases(backbone(training.image)[:, 0], training.target)
    tested = backbone(test.image)[:, 0]

    def learn(task: int) -> None:
        def loss(module: nn.Module, feature: Tensor, target: Tensor) -> Tensor:
            return masked_loss(module(feature), target, TASKS[task])

        train(head, features.with_any(TASKS[task]), loss, epochs, seed + task)

    return follow(learn, lambda tasks: head(tested), test)


def joint(backbone: VisionTransformer, training: Canvases, test: Canvases, epochs: int, seed: int) -> float:
    """One lane trained on all classes at once: the upper bound."""
    torch.manual_seed(seed)
    model = MultiLane(deepcopy(backbone), [list(range(10))], 4, 4, 2)

    def loss(module: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(module(image), target)

    train(model, training, loss, 2 * epochs, seed)
    with torch.no_grad():
        return average_precision(model(test.image), test.target, range(10))


def demo(seed: int, budget: float) -> list[Measurement]:
    """Learn five tasks of two digits each in every way."""
    share = min(1.0, budget / SYSTEM.budget)
    epochs = max(1, round(EPOCHS * share))
    backbone = pretrain(seed, max(1, round(PRETRAIN * share)))
    training, test = digits_canvases(seed)
    given = (backbone, training, test, epochs, seed)
    lanes, parallel, selected = lanes_course(*given)
    shared, linear, bound = shared_course(*given), linear_course(*given), joint(*given)

    def better(what: str, paper: str, baseline: float, here: float, by: float = 0.0) -> Measurement:
        return Measurement(what, paper, baseline, here, holds=here > baseline + by)

    return [
        Measurement(
            what="forgetting (fall of mAP of earlier tasks) of MULTI-LANE",
            paper="exactly 0 by construction of the lanes",
            baseline=None,
            here=lanes.forgetting,
            holds=lanes.forgetting == 0,
            better="lower",
        ),
        better("last mAP, against one shared lane", "state of the art", shared.seen[-1], lanes.seen[-1], 0.1),
        better("average mAP, against one shared lane", "higher", fmean(shared.seen), fmean(lanes.seen)),
        better(
            "last mAP, against linear heads on the frozen class token",
            "higher",
            linear.seen[-1],
            lanes.seen[-1],
        ),
        better("mAP on canvases of several tasks, against key selection", "higher", selected, parallel),
        Measurement(
            what="last mAP over that of joint training on all classes",
            paper="below the upper bound of 1",
            baseline=None,
            here=lanes.seen[-1] / bound,
            holds=lanes.seen[-1] <= bound,
        ),
    ]


NOTES = """
Canvases of 28 x 28 pixels hold one to three objects in their quarters (composites of real images, in the
style of MultiMNIST). The transformer (patch 7, 64 channels, 4 blocks) is pre-trained on composites of MNIST
digits, then frozen; five tasks of two classes each follow on composites of optical digits (UCI), 3,000
canvases, four selectors and four prompts a lane, prompts in two blocks. mAP is over the classes seen, of
test canvases that hold one of them.

**Where paper and code disagree.** After each block the code puts back the layer-normed selector, so that
the residual stream holds s + n(s); that is the default (`replace="normalised"`), and `replace="reset"` puts
back the selector itself, as the text suggests. Prompts may be in any number of blocks; the code's list ends
at twelve. The classes of each task are read by index, not in a loop over images. mAP is over seen classes
only.

Selectors with drop-and-replace do not depend on the image: `MultiLane.cache` computes them once, and
`fast_features` then moves the class token alone.
"""

SYSTEM = System(
    slug="multi_lane",
    title="Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental Learning",
    year=2024,
    arxiv="2405.15633",
    claim="Lanes of selectors and prompts that run in parallel learn new classes without forgetting and "
    "without selecting prompts.",
    demo=demo,
    budget=60.0,
    notes=NOTES,
)
