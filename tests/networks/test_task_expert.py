"""TaskExpert's memorial mixture: gates, memories, isolation of tasks, cost of one more task."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.networks.task_expert import MemorialMixture, TaskExpertDecoder

TASKS = ["parts", "depth", "edges"]


def make(**options: object) -> tuple[MemorialMixture, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    mixture = MemorialMixture(8, 6, TASKS, experts=3, **options).eval()  # type: ignore[arg-type]
    return mixture, torch.randn(2, 8, 5, 4), {task: torch.randn(2, 6, 5, 4) for task in TASKS}


@pytest.mark.parametrize("gate", ["sample", "spatial", "static"])
def test_gates_are_even_at_the_start_and_sum_to_one_after(gate: str) -> None:
    mixture, x, memory = make(gate=gate)
    _, _, gates = mixture(x, memory)
    for weight in gates.values():
        torch.testing.assert_close(weight, torch.full_like(weight, 1 / 4))
    for parameter in mixture.gates.parameters():
        torch.nn.init.normal_(parameter)
    for weight in mixture(x, memory)[2].values():
        assert (weight >= 0).all()
        torch.testing.assert_close(weight.sum(1), torch.ones_like(weight[:, 0]))
        assert torch.equal(weight[0], weight[1]) == (gate == "static")
        assert weight.shape[2:] == ((5, 4) if gate == "spatial" else (1, 1))


@pytest.mark.parametrize("chosen", range(4))
def test_a_gate_forced_onto_one_choice_returns_it(chosen: int) -> None:
    mixture, x, memory = make(gate="static")
    with torch.no_grad():
        for gate in mixture.gates.values():
            gate.scores[chosen] = 1000.0  # type: ignore[index, operator]
    features, _, _ = mixture(x, memory)
    for task in TASKS:
        expected = mixture.experts[chosen](x) if chosen < 3 else mixture.read[task](memory[task])
        torch.testing.assert_close(features[task], expected)


def test_one_expert_without_memory_gives_every_task_the_same() -> None:
    mixture = MemorialMixture(8, 6, TASKS, experts=1, read=False).eval()
    x = torch.randn(2, 8, 5, 4)
    features, _, _ = mixture(x)
    for task in TASKS:
        torch.testing.assert_close(features[task], mixture.experts[0](x))


def test_the_order_of_experts_does_not_matter_if_the_gates_follow() -> None:
    mixture, x, memory = make()
    for parameter in mixture.gates.parameters():
        torch.nn.init.normal_(parameter)
    before, _, _ = mixture(x, memory)
    order = [2, 0, 1]
    mixture.experts = torch.nn.ModuleList(mixture.experts[i] for i in order)
    with torch.no_grad():
        for gate in mixture.gates.values():
            gate.outer.weight[:3] = gate.outer.weight[order]  # type: ignore[index, union-attr, operator]
            gate.outer.bias[:3] = gate.outer.bias[order]  # type: ignore[index, union-attr, operator]
    after, _, _ = mixture(x, memory)
    for task in TASKS:
        torch.testing.assert_close(after[task], before[task])


def test_memories_are_added_to_or_replaced() -> None:
    for kind in ("add", "replace"):
        mixture, x, memory = make(write=kind)
        features, memories, _ = mixture(x, memory)
        for task in TASKS:
            written = mixture.write[task](features[task])
            expected = memory[task] + written if kind == "add" else written
            torch.testing.assert_close(memories[task], expected)


def decoder(**options: object) -> TaskExpertDecoder:
    torch.manual_seed(0)
    outputs = {"parts": 4, "depth": 1, "edges": 2}
    return TaskExpertDecoder([8, 8, 8], outputs, width=6, experts=3, **options)  # type: ignore[arg-type]


def test_a_task_moves_shared_experts_and_nothing_of_another_task() -> None:
    model, maps = decoder(), [torch.randn(2, 8, 5, 4) for _ in range(3)]
    model(maps, (21, 17))[0]["depth"].square().mean().backward()
    for name, parameter in model.named_parameters():
        owner = [task for task in TASKS if f".{task}." in name]
        if owner and owner != ["depth"]:
            assert parameter.grad is None, name
        elif ".experts." in name:
            assert parameter.grad is not None, name
            assert parameter.grad.any() or name.endswith("0.bias"), name  # a bias before a batch norm


@pytest.mark.parametrize("memory", [True, False])
def test_predictions_have_the_size_of_the_labels_and_no_state_stays(memory: bool) -> None:
    model = decoder(memory=memory).eval()
    maps = [torch.randn(2, 8, 5, 4) for _ in range(3)]
    first, gates = model(maps, (21, 17))
    second, _ = model(maps, (21, 17))
    assert {task: tuple(p.shape[1:]) for task, p in first.items()} == {
        "parts": (4, 21, 17),
        "depth": (1, 21, 17),
        "edges": (2, 21, 17),
    }
    assert all(torch.equal(first[task], second[task]) for task in first)
    assert [g["parts"].shape[1] for g in gates] == ([3, 4, 4] if memory else [3, 3, 3])


def test_dynamic_gates_come_to_differ_between_images() -> None:
    mixture, x, memory = make()
    optimizer = torch.optim.Adam(mixture.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        features, _, _ = mixture(x, memory)
        (features["depth"] - torch.tensor([1.0, -1.0])[:, None, None, None]).square().mean().backward()
        optimizer.step()
    weight = mixture(x, memory)[2]["depth"]
    assert not torch.allclose(weight[0], weight[1], atol=1e-5)


def test_one_more_task_costs_far_less_than_its_own_experts() -> None:
    def cost(tasks: int, banks: bool) -> int:
        with torch.device("meta"):
            names = [f"t{i}" for i in range(tasks)]
            groups = [[name] for name in names] if banks else [names]
            mixtures = [MemorialMixture(64, 32, group, experts=4) for group in groups]
            x, memory = torch.empty(1, 64, 14, 14), {name: torch.empty(1, 32, 14, 14) for name in names}
            with FlopCounterMode(display=False) as counter:
                for mixture in mixtures:
                    mixture(x, memory)
        return counter.get_total_flops()

    assert cost(8, False) < 0.5 * cost(8, True)
    slope = (cost(8, False) - cost(2, False)) / 6
    assert slope < 0.4 * (cost(2, True) - cost(1, True))


def test_wrong_input_is_named() -> None:
    mixture, x, _ = make()
    with pytest.raises(InputError, match="reads a memory"):
        mixture(x)
    with pytest.raises(InputError, match="different names"):
        MemorialMixture(8, 6, ["a", "a"])
    with pytest.raises(InputError, match="at least one expert"):
        MemorialMixture(8, 6, ["a"], experts=0)
    with pytest.raises(InputError, match="gate is 'sample'"):
        MemorialMixture(8, 6, ["a"], gate="hard")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one map"):
        TaskExpertDecoder([], {"a": 1})
