"""Flat regions against one training step of the authors' Multi-MNIST code (VietHoang1512/FS-MTL)."""

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchjd.aggregation import MGDAWeighting

from manyhead.tasks import FlatRegions, frozen_statistics

Pair = tuple[Any, Any]


class Network(nn.Module):
    """The tiny network of the golden file."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        # the places of the layers follow from the names: two linear maps, a normalisation between or not
        sizes = {
            name.split(".")[1]: value.shape
            for name, value in weights.items()
            if name.startswith("encoder.") and name.endswith(".weight")
        }
        (first, one), *norm, (second, two) = sorted(sizes.items(), key=lambda item: int(item[0]))
        layers: list[tuple[str, nn.Module]] = [(first, nn.Linear(one[1], one[0]))]
        layers += [(place, nn.BatchNorm1d(shape[0])) for place, shape in norm]
        layers += [("tanh", nn.Tanh()), (second, nn.Linear(two[1], two[0])), ("relu", nn.ReLU())]
        self.encoder = nn.Sequential(OrderedDict(layers))
        self.task_1, self.task_2 = (
            nn.Linear(*reversed(weights[f"task_{number}.weight"].shape)) for number in (1, 2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.task_1(z), self.task_2(z)


class AuthorsMGDA(nn.Module):
    """The authors keep a thousandth of weight on either task."""

    def forward(self, rows: Tensor) -> Tensor:
        return MGDAWeighting(epsilon=1e-7)(rows @ rows.T).clamp(0.001, 0.999) @ rows


class AuthorsCAGrad(nn.Module):
    """The authors' solver stops at SLSQP's tolerance, 1e-6, and they divide by 1 + c^2."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, rows: Tensor) -> Tensor:
        gram = (rows @ rows.T).numpy()
        mean, count = rows.mean(0), len(rows)
        radius = self.c * float(mean.norm()) + 1e-8
        found = minimize(
            lambda w: w @ gram @ np.full(count, 1 / count) + radius * np.sqrt(w @ gram @ w + 1e-8),
            np.full(count, 1 / count),
            bounds=[(0, 1)] * count,
            constraints={"type": "eq", "fun": lambda w: 1 - w.sum()},
        )
        weighted = torch.from_numpy(found.x).to(rows.dtype) @ rows
        return (mean + radius / (weighted.norm() + 1e-8) * weighted) / (1 + self.c**2)


def run(arrays: Any) -> dict[str, Pair]:
    config = arrays["config"]
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    weights = {name: torch.from_numpy(value) for name, value in arrays.group("w/").items()}
    c = next((config[name] for name in ("c", "cagrad_c", "calpha", "c_cagrad") if name in config), 0.4)
    pairs: dict[str, Pair] = {}
    for variant in config["variants"]:
        method, adaptive, rho = variant["method"], variant["adaptive"], variant["rho"]
        aggregator: Any = {
            "ew": "mean",
            "mgda": AuthorsMGDA(),
            "pcgrad": "pcgrad",
            "cagrad": AuthorsCAGrad(variant.get("c", c)),
            "imtl": "imtlg",
        }[method.removeprefix("a-")]
        balancer = FlatRegions(
            aggregator,
            rho=rho,
            adaptive=adaptive,
            norm_scope="joint",
            mode="direct" if method.startswith("a-") else "decomposed",
        )
        network = Network(weights)
        network.load_state_dict(weights)

        def losses(network: Network = network) -> dict[str, Tensor]:
            first, second = network(x)
            return {"1": cross_entropy(first, y[:, 0]), "2": cross_entropy(second, y[:, 1])}

        def again(network: Network = network, losses: Any = losses) -> dict[str, Tensor]:
            with frozen_statistics(network):
                return losses()

        balancer.backward(losses(), shared=network.encoder.parameters(), recompute=again)
        tag = f"{method}|adaptive={adaptive}|rho={rho}"
        largest = max(abs(value).max() for value in arrays.group(f"grad/{tag}/").values())
        for name, parameter in network.named_parameters():
            ours, official = parameter.grad, arrays[f"grad/{tag}/{name}"]
            assert ours is not None
            if abs(official).max() < 1e-6 * largest:
                # a bias under batch normalisation has no gradient but rounding
                pairs[f"grad/{tag}/{name}/vanishes"] = (bool(ours.abs().max() < 1e-6 * largest), True)
            else:
                pairs[f"grad/{tag}/{name}"] = (ours, official)
        for name, buffer in network.named_buffers():
            key = f"bn_after/{tag}/{name}"
            if key in arrays:
                pairs[key] = (buffer, arrays[key])
    return pairs


LIMITS = {"": 1e-5}
