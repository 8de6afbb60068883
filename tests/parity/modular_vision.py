"""A modular block against the authors' predecessor code (UMass-Foundation-Model/Mod-Squad)."""

from typing import Any

import torch

from manyhead.layers.gates import mutual_information, routing_table
from manyhead.networks.modular import ModularBlock

Pair = tuple[Any, Any]


def run(arrays: Any) -> dict[str, Pair]:
    config, weights = arrays["config"], arrays.group("w/")
    tasks = config["task_num"]
    block = ModularBlock(
        config["dim"],
        config["num_heads"],
        config["head_dim"],
        config["num_attn_experts"],
        config["num_ffd_experts"],
        config["ffd_k"],
        tasks,
        config["mlp_ratio"],
    )
    names = {
        "attn.q_proj.experts.w": "attn.inner.weights.0",
        "attn.q_proj.output_experts.w": "attn.outer.weights.0",
        "attn.kv_proj.0.weight": "attn.key_value.weight",
        "attn.kv_proj.0.bias": "attn.key_value.bias",
        "mlp.experts.w": "mlp.inner.weights.0",
        "mlp.experts.b": "mlp.inner.biases.0",
        "mlp.output_experts.w": "mlp.outer.weights.0",
        "mlp.output_experts.b": "mlp.outer.biases.0",
    }
    for task in range(tasks):
        names[f"attn.q_proj.f_gate.{task}.0.weight"] = f"attn.router.linears.{task}.weight"
        names[f"mlp.f_gate.{task}.0.weight"] = f"mlp.router.linears.{task}.weight"
    state = {names.get(name, name): torch.from_numpy(values) for name, values in weights.items()}
    missing, unexpected = block.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("usage") for name in missing), missing
    block.eval()
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    found = [block(x, task) for task in range(tasks)]
    y = torch.stack([out for out, _ in found])
    routers = {name: dict(block.named_parameters())[names[name]] for name in weights if "f_gate" in name}
    pairs: dict[str, Pair] = {"y": (y, arrays["y"])}
    loss, tokens = torch.zeros(()), [x.shape[0] * x.shape[1]] * tasks
    for place, part in enumerate(("attn", "mlp")):
        layer = [routings[place] for _, routings in found]
        table = routing_table(layer)
        weighted = config["w_MI"] * mutual_information(table, tokens)
        loss = loss + weighted
        pairs[f"MI_table_sum/{part}"] = (table, arrays[f"MI_table_sum/{part}"])
        pairs[f"MI_loss_weighted/{part}"] = (weighted, arrays[f"MI_loss_weighted/{part}"])
        for task, routing in enumerate(layer):
            official = arrays[f"usage_count/{part}/task{task}"]
            pairs[f"usage_count/{part}/task{task}"] = (routing.counts().float(), official)
    total = (y * torch.from_numpy(arrays["g"])).sum()
    wanted = [x, *routers.values()]
    for kind, value in (("grad_out", total), ("grad_MI", loss)):
        grads = torch.autograd.grad(value, wanted, retain_graph=True)
        if kind == "grad_out":
            pairs["grad_x"] = (grads[0], arrays["grad_x"])
        for name, grad in zip(routers, grads[1:], strict=True):
            pairs[f"{kind}/{name}"] = (grad, arrays[f"{kind}/{name}"])
    return pairs
