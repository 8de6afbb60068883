"""A second forward pass on the same batch must not count twice in running statistics."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Let normalisation layers use the batch's statistics but leave their running averages alone.

    Args:
        model: every batch and instance normalisation inside it is held.
    """
    held: list[tuple[_NormBase, float | None, Tensor | None]] = []
    try:
        for module in model.modules():
            if isinstance(module, _NormBase) and module.training and module.track_running_stats:
                held.append((module, module.momentum, module.num_batches_tracked))
                module.momentum, module.num_batches_tracked = 0.0, None
        yield
    finally:
        for module, momentum, count in held:
            module.momentum, module.num_batches_tracked = momentum, count
