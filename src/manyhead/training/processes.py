"""What several processes of one run tell each other.

The model is not wrapped: each process differentiates its part of the batch with any balancer, then the
gradients are averaged once. Strategies that keep whole copies of the weights are all that is supported.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from manyhead.training.checkpoint import pack, unpack

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def gather(fabric: "Fabric", value: Any) -> list[Any]:
    """A value of every process, by rank."""
    if fabric.world_size == 1:
        return [value]
    everyone: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everyone, value)
    return everyone


def average_gradients(fabric: "Fabric", parameters: list[nn.Parameter], found: bool) -> bool:
    """Average gradients over the processes in one message; one absent here counts as zero.

    Args:
        parameters: the same on every process, in the same order.
        found: whether this process has any gradient.

    Returns:
        whether any process has.
    """
    if fabric.world_size == 1:
        return found
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=fabric.device)
    torch.distributed.all_reduce(present)
    used = [p for p, there in zip(parameters, present.tolist(), strict=True) if there > 0]
    if not used:
        return False
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in used])
    torch.distributed.all_reduce(flat)
    flat /= fabric.world_size
    for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
    return True


def share_weights(fabric: "Fabric", *modules: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if fabric.world_size > 1:
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                torch.distributed.broadcast(tensor.data, 0)


def share_buffers(fabric: "Fabric", module: nn.Module) -> None:
    """Give every process the first one's buffers, such as running means."""
    if fabric.world_size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer.data, 0)


def to_message(tree: Any) -> tuple[Any, bytes]:
    """Nested values as plain ones and bytes, which outlive the process that sends them."""
    plain, tensors = pack(tree)
    return plain, save(tensors)


def from_message(message: tuple[Any, bytes]) -> Any:
    """The nested values of a message."""
    return unpack(message[0], load(message[1]))


def on_cpu(tree: Any) -> Any:
    """A copy of nested tensors in main memory."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, Mapping):
        return {key: on_cpu(value) for key, value in tree.items()}
    return copy.deepcopy(tree)
