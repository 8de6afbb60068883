"""The named networks have the papers' parameter counts, and small ones learn."""

import pytest
import torch

from manyhead.layers.convolution import MBConv, SameConv2d
from manyhead.layers.residual import DropPath
from manyhead.networks.davit import davit
from manyhead.networks.halonet import halonet
from manyhead.networks.maxvit import maxvit
from manyhead.networks.pyramid import parameters

MILLIONS = [
    *(
        ("maxvit", s, m)
        for s, m in {"tiny": 31, "small": 69, "base": 119, "large": 212, "xlarge": 475}.items()
    ),
    *(("davit", s, m) for s, m in {"tiny": 28.36, "small": 49.7, "base": 87.9, "large": 196.8}.items()),
    *(("halonet", f"h{i}", m) for i, m in enumerate([5.5, 8.1, 9.4, 11.8, 19.1, 30.7, 43.4, 67.4])),
]


@pytest.mark.parametrize(("name", "size", "millions"), MILLIONS)
def test_parameter_counts_are_the_papers(name: str, size: str, millions: float) -> None:
    build = {"maxvit": maxvit, "davit": davit, "halonet": halonet}[name]
    with torch.device("meta"):
        network = build(size)  # type: ignore[operator]
    assert parameters(network) / 1e6 == pytest.approx(millions, rel=0.005)


def test_davit_tiny_has_the_released_count() -> None:
    with torch.device("meta"):
        assert parameters(davit("tiny")) == 28_360_168


@pytest.mark.parametrize(
    ("network", "side"),
    [
        (maxvit(classes=5, stem=8, widths=(8, 16), depths=(1, 1), head_dim=4, window=2, padding="mask"), 18),
        (davit(classes=5, widths=(8, 16), heads=(2, 4), depths=(1, 1), window=2, drop_path=0.1), 18),
        (
            halonet("h0", 5, widths=(8, 16), depths=(1, 1), heads=(2, 2), block=3, halo=1, small_images=True),
            10,
        ),
        (halonet("h4", 5, widths=(8, 16), depths=(1, 1), heads=(2, 2), convolutions=1), 33),
    ],
)
def test_small_networks_train_on_sizes_that_do_not_divide(network: torch.nn.Module, side: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, side, side), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_same_padding_is_that_of_tensorflow() -> None:
    conv = SameConv2d(1, 1, 3, 2)
    assert conv(torch.zeros(1, 1, 7, 8)).shape == (1, 1, 4, 4)
    torch.nn.init.ones_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    assert conv(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9.0, 6.0, 6.0, 4.0]  # padded at the end only


def test_mbconv_with_a_zeroed_end_is_the_identity() -> None:
    block = MBConv(4, 4)
    torch.nn.init.zeros_(block.conv3_1x1.weight)
    torch.nn.init.zeros_(block.conv3_1x1.bias)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    assert float(drop(torch.ones(4000, 1)).mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(torch.ones(3, 1)), torch.ones(3, 1))
