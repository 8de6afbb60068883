"""What a balancer is: it turns the losses of several tasks into one parameter update.

A balancer fills the `.grad` of every parameter that the losses depend on; any optimizer then makes
the step. Two kinds exist. A *scalarisation* combines the losses into one number and differentiates it
once. Everything else looks at the gradient of each task, over the shared parameters or over the
shared representation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from manyhead.errors import InputError


class Losses(dict[str, Tensor]):
    """Scalar losses by task name, with what a balancer may want to know of where they came from.

    Args:
        losses: task name -> scalar tensor with a graph. Tasks without a label in the batch are absent.
        representation: the tensor or tensors that every head read, if there is such a place.
        shared: the parameters that every task uses.
    """

    def __init__(
        self,
        losses: Mapping[str, Tensor],
        *,
        representation: Tensor | Sequence[Tensor] | None = None,
        shared: Iterable[nn.Parameter] | None = None,
    ) -> None:
        super().__init__(losses)
        self.representation = representation
        self.shared = None if shared is None else list(shared)


class Balancer(nn.Module):
    """How the losses of several tasks become one update.

    A subclass implements `backward`. What it learns are its parameters, what it remembers are buffers
    (or `get_extra_state`): `fit` trains the first with the network, and saves and resumes both.
    """

    # whether every gradient goes through the `backward` callable, as loss scaling in float16 needs
    scalarises: bool = False

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        representation: Tensor | Sequence[Tensor] | None = None,
        recompute: Callable[[], Mapping[str, Tensor]] | None = None,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
    ) -> None:
        """Add the balanced gradient of the losses to the `.grad` of the parameters.

        Args:
            losses: task name -> scalar loss with a graph; the graph is freed.
            shared: the parameters that tasks share. Left out, a balancer that needs them takes the
                parameters that at least two of the losses depend on.
            representation: the tensor or tensors that every head reads; a balancer may then work with
                one gradient a task in that space, through which the shared network is passed once.
            recompute: runs the forward pass on the same batch again with the parameters as they then
                are, for balancers that look at the losses elsewhere (flat regions). It leaves running
                statistics of normalisation alone (`frozen_statistics`): a batch counts there once.
            backward: differentiates one scalar, such as `fabric.backward`.

        Raises:
            InputError: if `losses` is empty or the balancer does not know a task.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement backward()")

    def after_step(self, recompute: Callable[[], Mapping[str, Tensor]]) -> None:
        """Called when the optimizer has made its step, for balancers that watch what it did.

        Args:
            recompute: the losses of the last batch with the new parameters.
        """

    def after_epoch(self) -> None:
        """Called when an epoch of training ends, before validation."""


class Scalarisation(Balancer):
    """A balancer that combines the losses into one scalar, `combine(losses)`."""

    scalarises = True

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to minimise."""
        raise NotImplementedError(f"{type(self).__name__} must implement combine()")

    def backward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        representation: Tensor | Sequence[Tensor] | None = None,
        recompute: Callable[[], Mapping[str, Tensor]] | None = None,
        backward: Callable[[Tensor], object] = torch.autograd.backward,
    ) -> None:
        """Differentiate the combined loss once; only `losses` and `backward` matter."""
        check_losses(losses)
        backward(self.combine(losses))


def check_losses(losses: Mapping[str, Tensor]) -> None:
    """Refuse losses that no balancer can use.

    Raises:
        InputError: if there is none, one is not a scalar tensor, or one has no graph.
    """
    if not losses:
        raise InputError("losses must hold at least one task, got an empty dict")
    for name, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            came = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"the loss of task {name!r} must be a scalar tensor, got {came}")
        if not loss.requires_grad:
            raise InputError(
                f"the loss of task {name!r} does not depend on any parameter, so it has no gradient"
            )


def leaves(tensors: Tensor | Sequence[Tensor], stop: Sequence[Tensor] = ()) -> list[Tensor]:
    """The leaf tensors (parameters) that a graph ends in, in a fixed order.

    Args:
        tensors: where the walk starts.
        stop: tensors beyond which it does not go.
    """
    starts = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    barred = {tensor.grad_fn for tensor in stop if tensor.grad_fn is not None}
    found: dict[Tensor, None] = {start: None for start in starts if start.is_leaf and start.requires_grad}
    stack = [start.grad_fn for start in starts if start.grad_fn is not None]
    seen = set(stack) | barred
    while stack:
        node = stack.pop()
        if hasattr(node, "variable"):  # AccumulateGrad: the end of the graph
            found[node.variable] = None
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return list(found)
