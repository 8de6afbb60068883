"""A vision transformer of modules: attention and feed-forward layers are mixtures of experts.

'An Efficient General-Purpose Modular Vision Model via Multi-Task Heterogeneous Training', 2023,
arXiv 2306.17165, on the blocks of Mod-Squad (arXiv 2212.08066). A trained model is pruned to a task's own
experts, or extended by new experts and a router without touching the old ones.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from manyhead.errors import InputError
from manyhead.layers.gates import Dispatch, Experts, Routing, TaskRouter
from manyhead.networks.vision_transformer import PatchEmbedding


class ExpertFeedForward(nn.Module):
    """A feed-forward layer whose tokens go to `active` of its experts.

    Args:
        channels: size of a token.
        experts: number of experts.
        active: experts of a token.
        tasks: number of routers.
        ratio: hidden size of all active experts together over `channels`.
    """

    def __init__(self, channels: int, experts: int, active: int, tasks: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(ratio * channels / active)
        self.router = TaskRouter(channels, experts, active, tasks)
        self.inner, self.outer = Experts(experts, channels, hidden), Experts(experts, hidden, channels)

    def forward(self, x: Tensor, task: int) -> tuple[Tensor, Routing]:
        """Tokens (..., channels) of one task, and how they were routed."""
        routing = self.router(x, task)
        flat = Routing(*(part.flatten(0, -2) for part in routing))
        send = Dispatch(flat)
        rows = gelu(send.linear(send.send(x.flatten(0, -2)), self.inner.weight, self.inner.bias))
        y = send.combine(send.linear(rows, self.outer.weight, self.outer.bias))
        return y.view_as(x), routing


class ExpertAttention(nn.Module):
    """Multi-query attention whose heads are experts: a token picks `heads` of them.

    Experts hold query and output maps; keys and values are shared by all. Gates weigh the outputs alone.

    Args:
        channels: size of a token.
        heads: heads of a token.
        head_dim: size of a head.
        experts: number of experts, at least `heads`.
        tasks: number of routers.
    """

    def __init__(self, channels: int, heads: int, head_dim: int, experts: int, tasks: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.router = TaskRouter(channels, experts, heads, tasks)
        self.inner = Experts(experts, channels, head_dim, bias=False)
        self.outer = Experts(experts, head_dim, channels, bias=False)
        self.key_value = nn.Linear(channels, 2 * head_dim)

    def forward(self, x: Tensor, task: int) -> tuple[Tensor, Routing]:
        """Tokens (batch, tokens, channels) of one task, and how they were routed."""
        routing = self.router(x, task)
        send = Dispatch(Routing(*(part.flatten(0, -2) for part in routing)))
        rows = send.linear(send.send(x.flatten(0, 1)), self.inner.weight)
        query = (
            send.slots(rows).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        )  # batch, heads, tokens, d
        key, value = self.key_value(x)[:, None].expand(-1, query.shape[1], -1, -1).chunk(2, dim=-1)
        found = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)
        y = send.combine(send.linear(send.rows(found), self.outer.weight))
        return y.view_as(x), routing


class ModularBlock(nn.Module):
    """Expert attention and expert feed-forward, each behind a norm and beside a residual.

    Args:
        channels: size of a token.
        heads, head_dim, head_experts: of the attention.
        experts, active, ratio: of the feed-forward.
        tasks: number of routers.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_dim: int,
        head_experts: int,
        experts: int,
        active: int,
        tasks: int,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ExpertAttention(channels, heads, head_dim, head_experts, tasks)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = ExpertFeedForward(channels, experts, active, tasks, ratio)

    def forward(self, x: Tensor, task: int) -> tuple[Tensor, list[Routing]]:
        """Tokens after the block, and the routing of attention and feed-forward."""
        out, first = self.attn(self.norm1(x), task)
        x = x + out
        out, second = self.mlp(self.norm2(x), task)
        return x + out, [first, second]


class ModularVision(nn.Module):
    """A shared trunk of modular blocks with a head for each task.

    Args:
        outputs: size of each task's output, by task name.
        image, patch, inputs: size of the images, of a patch, and their channels.
        channels, depth: size of a token, number of blocks.
        heads, head_dim, head_experts: of the attention.
        experts, active, ratio: of the feed-forward.

    Raises:
        InputError: if patches do not tile the image, or there is no task.
    """

    def __init__(
        self,
        outputs: Mapping[str, int],
        *,
        image: int = 28,
        patch: int = 7,
        inputs: int = 1,
        channels: int = 64,
        depth: int = 4,
        heads: int = 4,
        head_dim: int = 16,
        head_experts: int = 8,
        experts: int = 8,
        active: int = 2,
        ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if not outputs:
            raise InputError("a modular model needs at least one task, got none")
        if image % patch:
            raise InputError(f"patches of {patch} do not tile an image of {image}")
        self.tasks = list(outputs)
        self.patch_embed = PatchEmbedding(inputs, channels, patch)
        self.pos_embed = nn.Parameter(torch.randn(1, (image // patch) ** 2, channels) * 0.02)
        self.task_embed = nn.ParameterList(torch.randn(channels) * 0.02 for _ in outputs)
        self.blocks = nn.ModuleList(
            ModularBlock(channels, heads, head_dim, head_experts, experts, active, len(outputs), ratio)
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-6) for _ in outputs)
        self.heads = nn.ModuleList(nn.Linear(channels, size) for size in outputs.values())

    def forward(self, image: Tensor, task: str) -> tuple[Tensor, list[Routing]]:
        """Output (batch, size) of one task, and the routing of every expert layer."""
        number = self.tasks.index(task)
        x, routings = self.patch_embed(image) + self.pos_embed, []
        for block in self.blocks:
            x, found = block(x + self.task_embed[number], number)
            routings += found
        return self.heads[number](self.norms[number](x.mean(1))), routings

    def expert_layers(self) -> list[ExpertAttention | ExpertFeedForward]:
        """Attention and feed-forward of every block, in the order of the routings."""
        return [layer for block in self.blocks for layer in (block.attn, block.mlp)]  # type: ignore[misc]

    def prune(self, task: str, threshold: float = 0.05, keep: float | None = None) -> "ModularVision":
        """A stand-alone copy for one task with its own experts.

        Args:
            task: name of the task.
            threshold: keep experts whose share of the task's choices is above threshold / active.
            keep: keep this share of the experts instead, the most used ones.

        Returns:
            the copy, with one task; each layer has at least as many experts as a token uses.

        Raises:
            InputError: if there is no such task or it was never routed in training.
        """
        if task not in self.tasks:
            raise InputError(f"there is no task {task!r}; there are {', '.join(self.tasks)}")
        number = self.tasks.index(task)

        def chosen(layer: ExpertAttention | ExpertFeedForward) -> Tensor:
            usage = layer.router.usage[number, : layer.router.experts_of(number)]
            if not usage.any():
                raise InputError(
                    f"task {task!r} has never been routed in training mode, so nothing can be pruned"
                )
            share = usage / usage.sum()
            count = int((share > threshold / layer.router.active).sum())
            count = max(count if keep is None else round(keep * len(usage)), layer.router.active)
            return share.topk(min(count, len(usage))).indices.sort().values

        return self._cut(number, chosen)

    def _cut(
        self, number: int, chosen: Callable[[ExpertAttention | ExpertFeedForward], Tensor]
    ) -> "ModularVision":
        small = deepcopy(self)
        small.tasks = [self.tasks[number]]
        small.task_embed = nn.ParameterList([small.task_embed[number]])
        small.norms = nn.ModuleList([small.norms[number]])
        small.heads = nn.ModuleList([small.heads[number]])
        for layer in small.expert_layers():
            experts = chosen(layer)
            layer.router = layer.router.keep(number, experts)
            layer.inner, layer.outer = layer.inner.keep(experts), layer.outer.keep(experts)
        return small

    def extend(self, task: str, size: int, experts: int) -> list[nn.Parameter]:
        """Freeze everything and add a task with new experts in each layer; old tasks stay as they are.

        Args:
            task: name of the new task.
            size: size of its output.
            experts: new experts of each layer, which the new task's routers choose beside the old ones.

        Returns:
            the parameters to train.

        Raises:
            InputError: if there is a task of that name.
        """
        if task in self.tasks:
            raise InputError(f"there is already a task {task!r}")
        self.requires_grad_(False)
        channels = self.pos_embed.shape[-1]
        self.tasks.append(task)
        self.task_embed.append(torch.randn(channels) * 0.02)
        self.norms.append(nn.LayerNorm(channels, eps=1e-6))
        self.heads.append(nn.Linear(channels, size))
        for layer in self.expert_layers():
            if experts:
                layer.inner.add(experts)
                layer.outer.add(experts)
            layer.router.add_task(len(layer.inner.weight))
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def task_routers(model: ModularVision, task: str) -> list[nn.Parameter]:
    """Parameters of one task alone: embedding, routers, norm and head, for adaptation with frozen experts."""
    number = model.tasks.index(task)
    parts: Sequence[nn.Module] = [layer.router.linears[number] for layer in model.expert_layers()]
    own = [model.task_embed[number]]
    for part in (*parts, model.norms[number], model.heads[number]):
        own += list(part.parameters())
    return own
