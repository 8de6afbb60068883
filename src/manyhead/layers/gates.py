"""Gates and experts: a router for each task, sparse dispatch, and the loss that ties experts to tasks.

Chen et al., 'Mod-Squad', 2023, arXiv 2212.08066, and its follow-up 'An Efficient General-Purpose Modular
Vision Model via Multi-Task Heterogeneous Training', 2023, arXiv 2306.17165.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from manyhead.errors import InputError

EPSILON = 1e-4  # added to probabilities and logarithms as in the published code


class Routing(NamedTuple):
    """What a router decided.

    Args:
        gates: weight of each chosen expert, (..., active); they are not renormalised.
        experts: index of each chosen expert, (..., active), the likeliest first.
        probability: of every expert, (..., experts); sums to 1 plus experts times epsilon.
    """

    gates: Tensor
    experts: Tensor
    probability: Tensor

    def counts(self) -> Tensor:
        """How often each expert was chosen, (experts,)."""
        return torch.bincount(self.experts.reshape(-1), minlength=self.probability.shape[-1])


class TaskRouter(nn.Module):
    """One linear router for each task over common experts.

    Args:
        channels: size of a token.
        experts: number of experts.
        active: experts that a token uses.
        tasks: number of routers.
        epsilon: added to each probability.
        noisy: learn a noise of the logits, which is on in training only.

    Raises:
        InputError: if a token cannot use so many experts.
    """

    usage: Tensor

    def __init__(
        self,
        channels: int,
        experts: int,
        active: int,
        tasks: int,
        epsilon: float = EPSILON,
        noisy: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= active <= experts:
            raise InputError(f"a token uses 1 to {experts} experts, got {active}")
        self.active, self.epsilon, self.noisy = active, epsilon, noisy
        width = 2 * experts if noisy else experts
        self.linears = nn.ModuleList(nn.Linear(channels, width, bias=False) for _ in range(tasks))
        for linear in self.linears:
            assert isinstance(linear, nn.Linear)
            nn.init.trunc_normal_(linear.weight, std=0.02)
        # running frequency of each expert under each task, decaying by 0.95 a batch
        self.register_buffer("usage", torch.zeros(tasks, experts))

    def forward(self, x: Tensor, task: int) -> Routing:
        """Route tokens (..., channels) of one task."""
        logits = self.linears[task](x)
        if self.noisy:
            logits, raw = logits.chunk(2, dim=-1)
            if self.training:
                logits = logits + torch.randn_like(logits) * (softplus(raw) + 1e-2)
        probability = logits.softmax(-1) + self.epsilon
        gates, experts = probability.topk(self.active, dim=-1)
        found = Routing(gates, experts, probability)
        if self.training:
            with torch.no_grad():
                row = self.usage[task, : probability.shape[-1]]
                row.mul_(0.95).add_(found.counts(), alpha=0.05)
        return found

    def experts_of(self, task: int) -> int:
        """Number of experts that a task's router chooses among."""
        linear = self.linears[task]
        assert isinstance(linear, nn.Linear)
        return linear.out_features // (2 if self.noisy else 1)

    def keep(self, task: int, experts: Tensor) -> "TaskRouter":
        """A router of one task over some of the experts, in the order given."""
        linear, count = self.linears[task], self.experts_of(task)
        assert isinstance(linear, nn.Linear)
        rows = torch.cat([experts, experts + count]) if self.noisy else experts
        small = TaskRouter(
            linear.in_features, len(experts), min(self.active, len(experts)), 1, self.epsilon, self.noisy
        )
        with torch.no_grad():
            small.linears[0].weight.copy_(linear.weight[rows])  # type: ignore[operator]
            small.usage[0] = self.usage[task, experts]
        return small

    def add_task(self, experts: int) -> None:
        """Add a router of a new task over `experts` experts; the old routers keep theirs."""
        first = self.linears[0]
        assert isinstance(first, nn.Linear)
        linear = nn.Linear(first.in_features, experts * (2 if self.noisy else 1), bias=False)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        self.linears.append(linear.to(first.weight))
        wide = self.usage.new_zeros(len(self.linears), experts)
        wide[:-1, : self.usage.shape[1]] = self.usage
        self.usage = wide


class Dispatch:
    """Sends each token to its experts and brings the results back.

    Args:
        routing: of tokens (n, ...), with experts (n, active).
    """

    def __init__(self, routing: Routing) -> None:
        self.gates = routing.gates
        tokens, self.active = routing.experts.shape
        flat = routing.experts.reshape(-1)
        self.order = flat.argsort(stable=True)  # pairs of token and slot, expert by expert
        self.token = self.order // self.active
        self.counts = torch.bincount(flat, minlength=routing.probability.shape[-1]).tolist()
        self.tokens = tokens

    def linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Each expert's own linear map of its rows.

        Args:
            rows: (n * active, in), expert by expert.
            weight: (experts, in, out).
            bias: (experts, out).
        """
        parts = []
        for expert, part in enumerate(rows.split(self.counts)):
            if len(part):
                parts.append(part @ weight[expert] + (0 if bias is None else bias[expert]))
        return torch.cat(parts) if parts else rows.new_zeros(0, weight.shape[-1])

    def send(self, x: Tensor) -> Tensor:
        """Tokens (n, channels) as rows (n * active, channels), expert by expert."""
        return x[self.token]

    def slots(self, rows: Tensor) -> Tensor:
        """Rows back at their token and slot, (n, active, channels)."""
        back = torch.empty_like(rows).index_copy(0, self.order, rows)
        return back.view(self.tokens, self.active, rows.shape[-1])

    def rows(self, slots: Tensor) -> Tensor:
        """The inverse of `slots`."""
        return slots.flatten(0, 1)[self.order]

    def combine(self, rows: Tensor) -> Tensor:
        """Sum over a token's experts, each times its gate, (n, channels)."""
        return (self.slots(rows) * self.gates[..., None]).sum(1)


class Experts(nn.Module):
    """Weights of linear maps, one for each expert; new ones can be added beside frozen old ones.

    Args:
        experts: number of experts.
        inputs: size of an input.
        outputs: size of an output.
        bias: learn a bias for each expert.
    """

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList() if bias else None
        self.add(experts)

    def add(self, experts: int) -> None:
        """Add new experts."""
        self.weights.append(torch.empty(experts, self.inputs, self.outputs).uniform_(-1, 1) / self.inputs)
        if self.biases is not None:
            self.biases.append(torch.empty(experts, self.outputs).uniform_(-1, 1) / self.outputs**0.5)

    @property
    def weight(self) -> Tensor:
        """(experts, inputs, outputs)."""
        return torch.cat(list(self.weights)) if len(self.weights) > 1 else self.weights[0]

    @property
    def bias(self) -> Tensor | None:
        """(experts, outputs)."""
        if self.biases is None:
            return None
        return torch.cat(list(self.biases)) if len(self.biases) > 1 else self.biases[0]

    def keep(self, experts: Tensor) -> "Experts":
        """A copy with some of the experts, in the order given."""
        small = Experts(len(experts), self.inputs, self.outputs, self.biases is not None)
        with torch.no_grad():
            small.weights[0].copy_(self.weight[experts])
            if small.biases is not None and self.bias is not None:
                small.biases[0].copy_(self.bias[experts])
        return small


def routing_table(routings: Sequence[Routing]) -> Tensor:
    """Probability mass that the tokens of each task give each expert, (tasks, experts)."""
    return torch.stack([routing.probability.flatten(0, -2).sum(0) for routing in routings])


def mutual_information(
    table: Tensor, tokens: Sequence[int], share: Sequence[float] | None = None, epsilon: float = EPSILON
) -> Tensor:
    """Minus the mutual information of task and expert; its minimum is -log(min(tasks, experts)).

    L = - sum_te P_te log(P_te / (P_t P_e) + epsilon).

    Args:
        table: (tasks, experts) probability mass, from `routing_table`.
        tokens: tokens that each row was summed over.
        share: probability of each task; None takes that of the tokens, as the published code does. With
            data sets of different sizes it should be given, such as one over the number of tasks.
        epsilon: added where the code adds it.

    Raises:
        InputError: if `tokens` or `share` do not have one number for each task.
    """
    if len(tokens) != len(table) or (share is not None and len(share) != len(table)):
        raise InputError(f"the table has {len(table)} tasks; tokens and share need one number for each")
    if share is None:
        joint = table / (sum(tokens) + epsilon)
    else:
        joint = table / table.new_tensor(tokens)[:, None] * table.new_tensor(share)[:, None]
    task = joint.sum(1, keepdim=True) + epsilon
    expert = joint.sum(0, keepdim=True) + epsilon
    return -(joint * (joint / (task * expert) + epsilon).log()).sum()


def load_balance(routing: Routing) -> Tensor:
    """The switch loss experts * sum_e f_e P_e, 1 in perfect balance (Fedus et al., 2021)."""
    probability = routing.probability.flatten(0, -2).mean(0)
    share = routing.counts() / routing.experts.numel()
    return len(probability) * (share * probability).sum()


class RoutingMemory:
    """Running rows of the routing table, for steps that hold only some of the tasks.

    Args:
        decay: share of the old row that stays.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.rows: dict[int, Tensor] = {}

    def table(self, routings: Mapping[int, Routing]) -> tuple[Tensor, list[int]]:
        """Rows of mean probability of all tasks seen so far; only those of this step carry gradient.

        Returns:
            (tasks, experts) and the tokens of each row, which are 1 because rows are means.
        """
        for task, routing in routings.items():
            row = routing.probability.flatten(0, -2).mean(0)
            old = self.rows.get(task)
            fresh = row.detach()
            self.rows[task] = fresh if old is None else self.decay * old + (1 - self.decay) * fresh
        live = {task: routing.probability.flatten(0, -2).mean(0) for task, routing in routings.items()}
        rows = [live.get(task, self.rows[task]) for task in sorted(self.rows)]
        return torch.stack(rows), [1] * len(rows)
