"""Rep-MTL: regularise what each task's loss asks of the shared representation.

Wang et al., 'Rep-MTL: Unleashing the Power of Representation-level Task Saliency for Multi-Task
Learning', 2025, arXiv 2507.21049, section 3. The saliency of task t is `S_t = dL_t / dZ`, kept with its
graph, so that the two terms are differentiated through it (second order) into encoder and heads:

- task-specific regulation (TSR), the entropy of the tasks' shares of saliency at each position;
- cross-task alignment (CSA), a contrast between the channel affinities of one sample's tasks and those of
  other samples.

How affinities of channels are compared without being built is in `affinities`. The contrast of all pairs of
anchors takes `min(tasks^2 channels, channels^2 / 2)` products a pair, which shows beside a small encoder when
batches are large.

The losses are log-transformed, as in the paper's recipe (its appendix); `LogSum` is that part alone, the
baseline that tells what the two terms add.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from manyhead.errors import InputError
from manyhead.tasks.balancers.affinities import similarities
from manyhead.tasks.balancers.base import Scalarisation, check_losses

SHIFT = 1e-8  # inside the logarithm of a loss, which may be zero
SMALL = 1e-6  # of a task's largest saliency in the batch: less is rounding
FLOOR = 1e-12  # of shares inside the logarithm, and beside their denominator


class LogSum(Scalarisation):
    """Minimise the sum of the logarithms of the losses: every task's relative decrease counts alike."""

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of `log(L_t + 1e-8)`, a scalar."""
        return log_losses(losses).sum()


class RepMTL(Scalarisation):
    """Minimise `sum_t log L_t + lambda_tsr L_tsr + lambda_csa L_csa`.

    The losses must carry their representation, and the heads must be differentiable twice. A task whose
    loss is piecewise linear in the representation (L1 on a linear head) sends the encoder nothing through
    the regularisers if `saliency_of` is 'raw'. A sample without a label for a task has no saliency for it
    and is left out there. With several representations the terms are averaged over them.

    Args:
        lambda_tsr: weight of the entropy; 0 leaves it out.
        lambda_csa: weight of the alignment; 0 leaves it out.
        tau: temperature of the alignment, above zero. The paper does not tell its own.
        saliency_of: saliency of the 'log' losses, as they are minimised, or of the 'raw' ones.
        reduce_tasks: 'mean' of one term for each task, or 'logsum', with the tasks summed inside one
            logarithm.
        include_positive: whether the denominator holds the positive pairs too (as in InfoNCE); the paper
            prints it without.
        channel_axis: axis of the channels in the representation; the others after the first are positions.
        multi_input: a batch in which no sample has two tasks is refused ('error'), unless 'concat' says that
            the tasks' own samples were encoded together: an approximation, where a task has zero saliency
            on the samples of others.

    Raises:
        InputError: if an argument cannot be used; in `backward`, if there is no representation, a loss does
            not depend on it, or the alignment has a single sample.
    """

    def __init__(
        self,
        lambda_tsr: float = 0.9,
        lambda_csa: float = 0.9,
        *,
        tau: float = 0.5,
        saliency_of: Literal["log", "raw"] = "log",
        reduce_tasks: Literal["mean", "logsum"] = "mean",
        include_positive: bool = False,
        channel_axis: int = -1,
        multi_input: Literal["error", "concat"] = "error",
    ) -> None:
        super().__init__()
        for name, value in {"lambda_tsr": lambda_tsr, "lambda_csa": lambda_csa}.items():
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be finite and not negative, got {value}")
        if not 0 < tau < float("inf"):
            raise InputError(f"tau must be finite and above zero, got {tau}")
        choices = {
            "saliency_of": (saliency_of, ("log", "raw")),
            "reduce_tasks": (reduce_tasks, ("mean", "logsum")),
            "multi_input": (multi_input, ("error", "concat")),
        }
        for name, (given, accepted) in choices.items():
            if given not in accepted:
                raise InputError(f"{name} must be {accepted[0]!r} or {accepted[1]!r}, got {given!r}")
        if channel_axis == 0:
            raise InputError("channel_axis must not be 0, the axis of the samples")
        self.lambda_tsr, self.lambda_csa, self.tau = float(lambda_tsr), float(lambda_csa), float(tau)
        self.saliency_of, self.reduce_tasks, self.include_positive = (
            saliency_of,
            reduce_tasks,
            include_positive,
        )
        self.channel_axis, self.multi_input = channel_axis, multi_input

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        representation: Tensor | Sequence[Tensor] | None = None,
        recompute: Callable[[], Mapping[str, Tensor]] | None = None,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
    ) -> None:
        """Differentiate the regularised sum once; `shared` and `recompute` are not used."""
        check_losses(losses)
        if representation is None:
            representation = getattr(losses, "representation", None)
        features = [representation] if isinstance(representation, Tensor) else list(representation or ())
        backward(log_losses(losses).sum() + self.regulariser(losses, features))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimise, for `Losses` that carry their representation."""
        held = getattr(losses, "representation", None)
        features = [held] if isinstance(held, Tensor) else list(held or ())
        return log_losses(losses).sum() + self.regulariser(losses, features)

    def regulariser(self, losses: Mapping[str, Tensor], features: Sequence[Tensor]) -> Tensor:
        """`lambda_tsr L_tsr + lambda_csa L_csa`, a scalar, averaged over the representations."""
        first = next(iter(losses.values()))
        if self.lambda_tsr == 0 and self.lambda_csa == 0:
            return torch.zeros_like(first).reshape(())
        if not features:
            raise InputError(
                "Rep-MTL needs losses that carry one representation which every head reads; several inputs "
                "must be encoded as one batch (multi_input='concat')"
            )
        total = torch.zeros((), device=first.device)
        for feature in features:
            saliency = self.saliency(losses, feature)
            self._check_samples(saliency)
            if self.lambda_tsr:
                total = total + self.lambda_tsr * regulation(saliency)
            if self.lambda_csa:
                total = total + self.lambda_csa * alignment(
                    saliency,
                    self.tau,
                    reduce_tasks=self.reduce_tasks,
                    include_positive=self.include_positive,
                )
        return total / len(features)

    def saliency(self, losses: Mapping[str, Tensor], feature: Tensor) -> Tensor:
        """Gradient of every task's loss over the representation, `(tasks, batch, channels, positions)`."""
        rows = []
        for name, loss in losses.items():
            value = log_of(loss) if self.saliency_of == "log" else loss
            (found,) = torch.autograd.grad(value, feature, create_graph=True, allow_unused=True)
            if found is None:
                raise InputError(f"the loss of task {name!r} does not depend on the representation")
            if found.ndim < 2 or not -found.ndim < self.channel_axis < found.ndim:
                raise InputError(
                    f"channel_axis must be an axis after the first of the representation "
                    f"{tuple(found.shape)}, got {self.channel_axis}"
                )
            found = found.movedim(self.channel_axis, 1)
            rows.append(found.reshape(*found.shape[:2], -1))
        stacked = torch.stack(rows)
        return stacked if stacked.dtype == torch.float64 else stacked.float()

    def _check_samples(self, saliency: Tensor) -> None:
        """Refuse tasks that share no sample."""
        there = present(saliency)  # (tasks, batch)
        apart = bool((there.sum(0) <= 1).all())
        if self.multi_input == "error" and apart and int(there.any(1).sum()) > 1:
            raise InputError(
                "no sample of the batch has a label for two tasks, so their saliencies cannot be compared: "
                "give one shared batch, or say multi_input='concat'"
            )


def log_of(loss: Tensor) -> Tensor:
    """`log(L + 1e-8)`, a scalar."""
    return torch.log(loss.reshape(()) + SHIFT)


def log_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """The transformed losses, `(tasks,)`.

    Raises:
        InputError: if a loss is negative, so that it has no logarithm.
    """
    for name, loss in losses.items():
        if float(loss.detach()) + SHIFT <= 0:
            raise InputError(f"the loss of task {name!r} is {float(loss.detach()):.4g}: it has no logarithm")
    return torch.stack([log_of(loss) for loss in losses.values()])


def present(saliency: Tensor) -> Tensor:
    """Which tasks have any saliency on which samples, `(tasks, batch)` from `(tasks, batch, ...)`."""
    there: Tensor = torch.linalg.vector_norm(saliency.detach().flatten(2), torch.inf, dim=2) != 0
    return there


def regulation(saliency: Tensor) -> Tensor:
    """TSR: mean entropy of the tasks' shares of each position.

    Args:
        saliency: `(tasks, batch, channels, positions)`.

    Returns:
        a scalar in `[0, log tasks]`. Positions where every task's saliency vanishes are left out.
    """
    size = saliency.mean(2).abs()  # (tasks, batch, positions)
    whole = size.sum(0)
    share = size / (whole + FLOOR)
    entropy = -(share * share.clamp(min=FLOOR).log()).sum(0)
    there = whole.detach() > 0
    return (entropy * there).sum() / there.sum().clamp(min=1)


def alignment(
    saliency: Tensor,
    tau: float,
    *,
    reduce_tasks: Literal["mean", "logsum"] = "mean",
    include_positive: bool = False,
) -> Tensor:
    """CSA: each sample's anchor is near its tasks' channel affinities and far from other anchors.

    Args:
        saliency: `(tasks, batch, channels, positions)`; a task without any saliency on a sample is no
            partner of that sample's anchor.
        tau: temperature.
        reduce_tasks, include_positive: as in `RepMTL`.

    Returns:
        a scalar, which may be negative unless the positive is included.

    Raises:
        InputError: for fewer than two samples.
    """
    if saliency.shape[1] < 2:
        raise InputError(
            "the alignment of Rep-MTL contrasts samples: a batch must have at least 2, got "
            f"{saliency.shape[1]} (drop_last=True leaves a smaller last batch out)"
        )
    # cosines do not see how small a saliency is, but their gradient grows with its inverse: of a sample that
    # is told with certainty, rounding is all that is left, and it counts as having none
    size = torch.linalg.vector_norm(saliency.detach().flatten(2), torch.inf, dim=2)  # (tasks, batch)
    there = size > SMALL * size.amax(1, keepdim=True)
    saliency = torch.where(there[:, :, None, None], saliency, 0.0)
    known = there.any(0)
    if int(known.sum()) < 2:
        return saliency.sum() * 0.0
    if not bool(known.all()):
        saliency, there = saliency[:, known], there[:, known]
    near, far = similarities(saliency)
    near = (near / tau).T  # (batch, tasks)
    pairs = there.T
    far = (far / tau).masked_fill(torch.eye(len(far), dtype=torch.bool, device=far.device), -torch.inf)
    negatives = far.logsumexp(1)  # (batch,)
    if reduce_tasks == "logsum":
        positive = near.masked_fill(~pairs, -torch.inf).logsumexp(1)
        below = torch.logaddexp(negatives, positive) if include_positive else negatives
        return (below - positive).mean()
    below = negatives[:, None].expand_as(near)
    if include_positive:
        below = torch.logaddexp(below, near)
    mean: Tensor = (((below - near) * pairs).sum(1) / pairs.sum(1)).mean()
    return mean
