"""Rep-MTL's terms and their second-order gradients against an independent float64 evaluation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.tasks import Losses, RepMTL
from manyhead.tasks.balancers.rep import alignment, log_losses, regulation

Pair = tuple[Any, Any]


class Network(nn.Module):
    """The encoder and the heads of the golden file."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        channels = config["C"]
        self.enc = nn.Conv2d(config["in_ch"], channels, 3, padding=1)
        for task, classes in enumerate(config["classes"]):
            head = nn.Module()
            head.conv = nn.Conv2d(channels, config["hid"], 1)
            head.fc = nn.Linear(config["hid"], classes)
            self.add_module(f"head{task}", head)

    def losses(self, x: Tensor, y: Tensor) -> Losses:
        z = self.enc(x).tanh()
        values = {}
        for task, label in enumerate(y):
            head: Any = getattr(self, f"head{task}")
            values[str(task)] = cross_entropy(head.fc(head.conv(z).tanh().mean((2, 3))), label)
        return Losses(values, representation=z, shared=self.enc.parameters())


def run(arrays: Any) -> dict[str, Pair]:
    config, pairs = arrays["config"], {}
    tau = config["tau"]

    def flat(requires_grad: bool = True) -> Tensor:
        return torch.from_numpy(arrays["S"]).double().flatten(3).requires_grad_(requires_grad)

    s = flat()
    found = regulation(s)
    found.backward()
    pairs["tsr"] = (found.detach(), arrays["tsr"])
    pairs["grad_tsr_S"] = (s.grad.reshape(arrays["S"].shape), arrays["grad_tsr_S"])
    for reduce in ("mean", "logsum"):
        for include in (False, True):
            s = flat()
            found = alignment(s, tau, reduce_tasks=reduce, include_positive=include)
            name = f"csa|reduce={reduce}|include_positive={include}"
            pairs[name] = (found.detach(), arrays[name])
            if reduce == "mean" and not include:
                found.backward()
                pairs["grad_csa_S"] = (s.grad.reshape(arrays["S"].shape), arrays["grad_csa_S"])
    x, y = torch.from_numpy(arrays["x"]).double(), torch.from_numpy(arrays["y"])
    weights = {name: torch.from_numpy(value).double() for name, value in arrays.group("w/").items()}
    for kind in ("log", "raw"):
        network = Network(config).double()
        network.load_state_dict(weights)
        balancer = RepMTL(
            config["lambda_tsr"], config["lambda_csa"], tau=tau, saliency_of=kind, channel_axis=1
        )
        losses = network.losses(x, y)
        saliency = balancer.saliency(losses, losses.representation)
        if kind == "log":
            pairs["task_losses"] = (torch.stack(list(losses.values())), arrays["task_losses"])
            pairs["e2e/log/saliency"] = (saliency.reshape(arrays["S"].shape), arrays["e2e/log/saliency"])
        pairs[f"e2e/{kind}/tsr"] = (regulation(saliency), arrays[f"e2e/{kind}/tsr"])
        pairs[f"e2e/{kind}/csa"] = (alignment(saliency, tau), arrays[f"e2e/{kind}/csa"])
        total = log_losses(losses).sum() + balancer.regulariser(losses, [losses.representation])
        pairs[f"e2e/{kind}/total"] = (total, arrays[f"e2e/{kind}/total"])
        balancer.backward(network.losses(x, y))
        for name, parameter in network.named_parameters():
            key = f"e2e/{kind}/grad/{name}"
            pairs[key] = (parameter.grad, arrays[key])
    return pairs


LIMITS = {"": 1e-5}
