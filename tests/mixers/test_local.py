"""Local mixers: the contract of every mixer, and the papers' invariants."""

import pytest
import torch

from manyhead.insight.mixing import mixing_report
from manyhead.mixers.base import Mixer
from manyhead.mixers.block import BlockAttention, GridAttention
from manyhead.mixers.channel import ChannelGroupAttention
from manyhead.mixers.distributed import DistributedAttention
from manyhead.mixers.halo import HaloAttention
from manyhead.mixers.neighborhood import NeighborhoodAttention
from manyhead.mixers.toeplitz import CausalConvolution, FourierMixing
from manyhead.pattern import Causal, Window
from manyhead.testing.mixers import check_mixer


@pytest.mark.parametrize(
    ("mixer", "shape"),
    [
        (NeighborhoodAttention(8, 2, Window((3, 3))), (2, 5, 6, 8)),
        (NeighborhoodAttention(8, 2, Window((3, 3)), relative=True), (2, 5, 6, 8)),
        (NeighborhoodAttention(8, 2, Window(3, causal=True)), (2, 9, 8)),
        (BlockAttention(8, 2, 3, relative=True), (2, 6, 9, 8)),
        (GridAttention(8, 2, (2, 3), relative=True), (2, 6, 9, 8)),
        (HaloAttention(8, 2, 4, 2), (2, 8, 8, 8)),
        (ChannelGroupAttention(8, 2), (2, 5, 7, 8)),
        (DistributedAttention(8, 2, 12, Causal()), (2, 12, 8)),
        (CausalConvolution(8, 4), (2, 12, 8)),
        (FourierMixing(), (2, 12, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Mixer) else "",
)
def test_the_contract_of_mixers(mixer: Mixer, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    done = check_mixer(mixer, shape)
    assert "context refused" in done
    assert mixer.weighted == ("mixing matrix" in done)
    assert mixer.describe().startswith(type(mixer).__name__)


@pytest.mark.parametrize(
    "mixer",
    [
        NeighborhoodAttention(8, 2, Window((3, 5), (2, 1))),
        NeighborhoodAttention(8, 2, Window((3, 3)), relative=True),
        BlockAttention(8, 2, (3, 4), relative=True),
        GridAttention(8, 2, (2, 4), relative=True),
    ],
)
def test_the_mixing_matrix_is_what_is_applied(mixer: NeighborhoodAttention | BlockAttention) -> None:
    x = torch.randn(2, 6, 8, 8)
    matrix = mixer.mixing_matrix(x)
    values = mixer.qkv(x).flatten(1, 2).unflatten(-1, (3, 2, 4))[:, :, 2]
    mixed = torch.einsum("bhqk,bkhd->bqhd", matrix, values).flatten(2)
    assert (mixer.proj(mixed) - mixer(x).flatten(1, 2)).abs().max() < 1e-5


def test_the_halo_matrix_is_what_is_applied() -> None:
    mixer, x = HaloAttention(8, 2, 3, 2), torch.randn(2, 6, 7, 8)  # 7 is no multiple of 3
    values = mixer.kv(x).flatten(1, 2).unflatten(-1, (2, 8))[..., 4:]
    mixed = torch.einsum("bhqk,bkhd->bqhd", mixer.mixing_matrix(x), values).flatten(2)
    assert (mixed - mixer(x).flatten(1, 2)).abs().max() < 1e-5


def test_halo_borders_and_degenerate_cases() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    wide = HaloAttention(8, 2, 4, 8)  # every query sees the whole image
    assert (wide.mixing_matrix(x) > 0).all()
    none = HaloAttention(8, 2, 4, 0)
    (gradient,) = torch.autograd.grad(none(x)[0, 0, 0].sum(), x)
    assert (gradient[0, 4:] == 0).all()
    halo = HaloAttention(8, 2, 4, 1)
    (gradient,) = torch.autograd.grad(halo(x)[0, 0, 0].sum(), x)
    seen = gradient.abs().sum(-1)[0] > 0
    assert seen[:5, :5].all()
    assert int(seen.sum()) == 25
    sizes = [sum(p.numel() for p in HaloAttention(8, 2, 4, h).parameters()) for h in (0, 2)]
    assert sizes[1] - sizes[0] == 2 * (2 * 2 * 2) * 4  # only the two tables grow


def test_halo_stride_samples_the_output_at_stride_one() -> None:
    torch.manual_seed(0)
    plain, strided = HaloAttention(8, 2, 4, 1), HaloAttention(8, 2, 4, 1, stride=2)
    strided.load_state_dict(plain.state_dict())
    x = torch.randn(2, 8, 12, 8)
    assert (strided(x) - plain(x)[:, ::2, ::2]).abs().max() < 1e-6


def test_halo_pads_and_crops_sizes_that_do_not_divide() -> None:
    x = torch.randn(1, 5, 7, 8)
    assert HaloAttention(8, 2, 4, 1)(x).shape == x.shape
    assert HaloAttention(8, 2, 4, 1, stride=2)(x).shape == (1, 3, 4, 8)
    assert HaloAttention(8, 2, 3, 1, stride=2)(x).shape == (1, 3, 4, 8)


def test_blocks_and_lattices_are_local_and_both_reach_everywhere() -> None:
    x = torch.randn(1, 6, 6, 8, requires_grad=True)
    block, grid = BlockAttention(8, 2, 3), GridAttention(8, 2, 3)
    (gradient,) = torch.autograd.grad(block(x)[0, 0, 0].sum(), x)
    assert int((gradient.abs().sum(-1) > 0).sum()) == 9
    (gradient,) = torch.autograd.grad(grid(x)[0, 0, 0].sum(), x)
    seen = gradient.abs().sum(-1)[0] > 0
    assert seen[::2, ::2].all()
    assert int(seen.sum()) == 9
    (gradient,) = torch.autograd.grad(grid(block(x))[0, 0, 0].sum(), x)
    assert (gradient.abs().sum(-1) > 0).all()


def test_blocks_of_the_whole_map_are_lattices_of_it() -> None:
    block, grid = (kind(8, 2, 4, relative=True) for kind in (BlockAttention, GridAttention))
    grid.load_state_dict(block.state_dict())
    x = torch.randn(2, 4, 4, 8)
    assert (block(x) - grid(x)).abs().max() < 1e-6
    block.resize(6)
    assert block(torch.randn(1, 6, 6, 8)).shape == (1, 6, 6, 8)


def test_masked_padding_does_not_change_what_fits() -> None:
    mixer = BlockAttention(8, 2, 3)
    x = torch.randn(1, 3, 4, 8)
    assert (mixer(x)[:, :, :3] - mixer(x[:, :, :3])).abs().max() < 1e-6


def test_channel_attention_does_not_know_the_order_of_tokens() -> None:
    mixer, x = ChannelGroupAttention(8, 2), torch.randn(2, 9, 8)
    order = torch.randperm(9)
    assert (mixer(x[:, order]) - mixer(x)[:, order]).abs().max() < 1e-5
    assert torch.allclose(mixer.channel_weights(x).sum(-1), torch.ones(2, 2, 4))


def test_channel_naming_is_a_permutation_of_weights() -> None:
    code, paper = (ChannelGroupAttention(8, 2, naming=name) for name in ("code", "paper"))  # type: ignore[arg-type]
    state = code.state_dict()
    for kind in ("weight", "bias"):
        q, k, v = state[f"qkv.{kind}"].chunk(3)
        state[f"qkv.{kind}"] = torch.cat([k, v, q])
    paper.load_state_dict(state)
    x = torch.randn(2, 9, 8)
    assert (code(x) - paper(x)).abs().max() < 1e-6


def test_fourier_mixing_and_its_report() -> None:
    x = torch.randn(2, 8, 4)
    assert torch.allclose(FourierMixing()(x), torch.fft.fft2(x).real)
    mixer = CausalConvolution(4, 3)
    report = mixing_report(mixer, x)
    assert report.leakage == 0.0
    assert report.mean_distance < 3
    uniform = NeighborhoodAttention(4, 1, Window(8))
    torch.nn.init.zeros_(uniform.qkv.weight)
    torch.nn.init.zeros_(uniform.qkv.bias)
    report = mixing_report(uniform, x)
    assert report.numerical_rank == pytest.approx(1.0)
    assert report.row_sum_error < 1e-6
