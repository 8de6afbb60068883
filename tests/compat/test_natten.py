"""NATTEN's names run and train on CPU, with its checkpoints' parameter names."""

import pytest
import torch

import manyhead.compat.natten as natten
from manyhead.attention import attend
from manyhead.errors import InputError
from manyhead.pattern import Window


def test_fused_functions_are_attend_under_a_window() -> None:
    for axes, run in ((1, natten.na1d), (2, natten.na2d), (3, natten.na3d)):
        q, k, v = (torch.randn(1, *[5] * axes, 2, 4, requires_grad=True) for _ in range(3))
        out = run(
            q, k, v, kernel_size=3, dilation=1, is_causal=[True] + [False] * (axes - 1), backend="cutlass-fna"
        )
        expected = attend(q, k, v, Window((3,) * axes, causal=(True, *[False] * (axes - 1))))
        assert torch.allclose(out, expected, atol=1e-6)
        out.sum().backward()
        assert q.grad is not None


def test_unfused_functions_compose_to_the_fused_one() -> None:
    q, k, v = (torch.randn(2, 2, 6, 5, 4) for _ in range(3))
    weights = natten.na2d_qk(q * 0.5, k, (3, 2)).softmax(-1)
    out = natten.na2d_av(weights, v, (3, 2))
    fused, lse = natten.na2d(*(x.movedim(1, -2) for x in (q, k, v)), (3, 2), return_lse=True)
    assert (out.movedim(1, -2) - fused).abs().max() < 1e-5
    both, _ = natten.merge_attentions([fused, fused], [lse, lse])
    assert torch.allclose(both, fused, atol=1e-6)
    line = [x[:, :, :, 0] for x in (q, k, v)]
    assert natten.na1d_av(natten.na1d_qk(line[0], line[1], 3).softmax(-1), line[2], 3).shape == line[2].shape


def test_modules_have_nattens_parameter_names() -> None:
    module = natten.NeighborhoodAttention2D(dim=8, num_heads=2, kernel_size=3, rel_pos_bias=True)
    assert set(module.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rpb"}
    assert module.rpb.shape == (2, 5, 5)  # type: ignore[union-attr]
    module(torch.randn(1, 5, 6, 8)).sum().backward()
    assert natten.NeighborhoodAttention1D(8, 2, 3)(torch.randn(1, 7, 8)).shape == (1, 7, 8)
    assert natten.NeighborhoodAttention3D(8, 2, 2)(torch.randn(1, 3, 4, 3, 8)).shape == (1, 3, 4, 3, 8)


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(1, 6, 2, 4)
    with pytest.raises(InputError, match="query has 5 axes"):
        natten.na2d(x, x, x, 3)
    with pytest.raises(InputError, match="kernel_size takes one value or 1"):
        natten.na1d(x, x, x, (3, 3))
    with pytest.raises(InputError, match="embed_dim"):
        natten.NeighborhoodAttention1D()
