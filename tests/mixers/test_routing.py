"""Routing attention: balanced clusters, true positions, strict causality, centroids that find blobs."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from manyhead.errors import InputError
from manyhead.kernels.clusters import best_members, cluster_attention
from manyhead.kernels.clusters_normalised import clustered_attention
from manyhead.layers.centroids import Centroids, unit_norm
from manyhead.mixers.routing import RoutingAttention, commitment_loss, routing_layers
from manyhead.mixers.routing_port import PortRoutingAttention, member_means


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("causal", [False, True])
def test_one_cluster_of_all_tokens_is_dense_attention(causal: bool) -> None:
    q, v = unit_norm(tokens(2, 3, 9, 8)), tokens(2, 3, 9, 8).flip(0)
    index = torch.arange(9).expand(2, 3, 1, 9)
    logits = q @ q.mT
    if causal:
        logits = logits.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    dense = logits.softmax(-1) @ v
    found = cluster_attention(q, q, v, index, index, causal=causal, epsilon=0.25)
    torch.testing.assert_close(found, dense / 1.25, atol=1e-6, rtol=1e-5)


def test_clusters_are_balanced_sorted_and_uncovered_tokens_are_zero() -> None:
    layer = RoutingAttention(16, 2, 2, 3, 4, causal=False, share_qk=True)
    index, _ = layer.membership(tokens(2, 20, 16))
    assert index.shape == (2, 2, 3, 4)
    assert (index.diff() > 0).all()
    q, _ = layer.routing_parts(*layer.parts(tokens(2, 20, 16))[:2])
    out = cluster_attention(q, q, q, index, index)
    covered = torch.zeros(2, 2, 20, dtype=torch.bool).scatter(2, index.flatten(2), True)
    assert (out[~covered] == 0).all()
    assert (out[covered] != 0).any(-1).all()


def test_membership_of_the_future_leaks_unless_strict_and_values_never_do() -> None:
    x = tokens(1, 16, 16)
    y = x.clone()
    y[:, 9:] = tokens(1, 7, 16) * 3
    options = {"block": 4, "max_distance": 4}
    plain = RoutingAttention(16, 4, 2, 4, 4, **options).eval()
    frozen = plain.membership(x)
    assert torch.equal(plain(x, membership=frozen)[:, :9], plain(y, membership=frozen)[:, :9])
    strict = RoutingAttention(16, 4, 2, 4, 4, strict_causal=True, **options).eval()
    assert torch.equal(strict(x)[:, :9], strict(y)[:, :9])
    assert not torch.allclose(strict(x)[:, 9:], strict(y)[:, 9:])


def test_unshared_causal_queries_see_no_later_key() -> None:
    q, k, v = tokens(3, 1, 2, 12, 8).unbind(0)
    q_index, k_index = (best_members(part[..., :3], 5) for part in (q, k))
    v.requires_grad_()
    out = cluster_attention(q, k, v, q_index, k_index, causal=True)
    for t in range(12):
        (grad,) = torch.autograd.grad(out[:, :, t].sum(), v, retain_graph=True)
        assert (grad[:, :, t + 1 :] == 0).all()


@pytest.mark.parametrize("share", [True, False])
def test_steps_equal_the_strictly_causal_parallel_form(share: bool) -> None:
    torch.manual_seed(0)
    layer = RoutingAttention(
        16, 4, 2, 4, 6, block=8, max_distance=8, strict_causal=True, share_qk=share
    ).eval()
    x = tokens(2, 512, 16)
    with torch.no_grad():
        state, outs = layer.initial_state(2), []
        for x_t in x.unbind(1):
            y_t, state = layer.step(x_t, state)
            outs.append(y_t)
        torch.testing.assert_close(torch.stack(outs, 1), layer(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": False, "share_qk": True},
        {"causal": False, "share_qk": False},
        {"causal": True},
        {"causal": True, "strict_causal": True},
    ],
)
def test_padding_at_the_end_is_as_if_it_were_not_there(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    mixer = RoutingAttention(16, 4, 2, 3, 5, block=4, **options).train()
    other = RoutingAttention(16, 4, 2, 3, 5, block=4, **options).train()
    other.load_state_dict(mixer.state_dict())
    x, padding = torch.randn(2, 20, 16), torch.arange(20) >= 13
    padded = mixer(x, padding=padding.expand(2, -1))[:, :13]
    torch.testing.assert_close(padded, other(x[:, :13]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixer.commitment, other.commitment)
    torch.testing.assert_close(mixer.centroids.means, other.centroids.means)


def test_the_order_of_clusters_and_the_scale_of_tokens_do_not_matter() -> None:
    layer, x = RoutingAttention(16, 2, 2, 4, 4, causal=False, share_qk=True).eval(), tokens(2, 16, 16)
    before, members = layer(x), layer.membership(x)[0]
    assert torch.equal(layer.membership(50 * x)[0], members)
    layer.centroids.means.copy_(layer.centroids.means[:, [2, 0, 3, 1]])
    torch.testing.assert_close(layer(x), before, atol=1e-6, rtol=1e-5)


def test_centroids_find_blobs_and_rest_in_evaluation() -> None:
    torch.manual_seed(0)
    centres = unit_norm(torch.randn(4, 16))
    label = torch.arange(200) % 4
    points = unit_norm(centres[label] + 0.2 * torch.randn(200, 16))[None, None]
    found = Centroids(1, 4, 16, decay=0.5)
    found.means.copy_(unit_norm(centres + 0.8 * torch.randn(4, 16)))
    found.sums.copy_(found.means)
    for _ in range(40):
        found.update(points)
    nearest = found.scores(points).argmax(-1)[0, 0]
    pure = sum(int(torch.bincount(label[nearest == c], minlength=4).max()) for c in nearest.unique())
    assert pure / 200 > 0.95
    layer = RoutingAttention(16, 2, 2, 4, 4)
    means = layer.centroids.means.clone()
    layer.eval()(tokens(1, 8, 16))
    assert torch.equal(layer.centroids.means, means)
    layer.train()(tokens(1, 8, 16))
    assert not torch.equal(layer.centroids.means, means)
    commitment_loss(layer).backward()
    assert layer.qkv.weight.grad is not None
    with pytest.raises(InputError, match="training mode"):
        commitment_loss(torch.nn.Identity())


@pytest.mark.parametrize("router", ["kmeans", "random", "lsh"])
def test_every_router_and_layers_without_routing(router: str) -> None:
    stack = routing_layers(3, 2, 16, 4, 2, 4, 4, router=router, block=4)
    assert [layer.routed for layer in stack] == [0, 0, 2]
    for layer in stack:
        assert torch.isfinite(layer(tokens(2, 10, 16))).all()  # 10 is no multiple of a block


def test_the_port_averages_and_masks_by_true_position() -> None:
    q, v = tokens(1, 2, 12, 8), tokens(1, 2, 12, 8)
    means = torch.nn.functional.normalize(tokens(2, 3, 8), dim=-1)
    v = v.clone().requires_grad_()
    out, loss = clustered_attention(q, q, v, means, 5, shared_qk=True, causal=True)
    assert loss > 0
    for t in range(12):
        (grad,) = torch.autograd.grad(out[:, :, t].sum(), v, retain_graph=True)
        assert (grad[:, :, t + 1 :] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_the_ports_mixer_starts_at_its_first_batch_and_follows_its_members(causal: bool, share: bool) -> None:
    torch.manual_seed(0)
    mixer = PortRoutingAttention(
        16, 4, 3, 6, causal=causal, share_qk=share, rotary_base=1e4, decay=0.9
    ).eval()
    x = torch.randn(2, 20, 16)
    assert not mixer.started
    y = mixer(x)
    assert mixer.started
    torch.testing.assert_close(mixer.means.norm(dim=-1), torch.ones(4, 3))
    assert torch.equal(mixer(x), y)  # at rest in evaluation
    q, k, v = mixer.parts(x)
    assert torch.equal(q, k) == share
    out, loss = clustered_attention(
        q, k, v, mixer.means, 6, shared_qk=share, causal=causal,
        memory_key=mixer.memory_key, memory_value=mixer.memory_value,
    )  # fmt: skip
    torch.testing.assert_close(mixer.out_proj(out.transpose(1, 2).flatten(2)), y)
    before = mixer.means.clone()
    mixer.train()(x).square().sum().backward()
    torch.testing.assert_close(commitment_loss(mixer), loss)
    unit = nn.functional.normalize(q if share else torch.cat([q, k], 2), dim=-1)
    nearest = (unit @ before.mT).argmax(-1)
    for h in range(4):
        for c in range(3):
            mine = unit[:, h][nearest[:, h] == c].sum(0)
            goal = mine / mine.norm() if (nearest[:, h] == c).any() else before[h, c]
            torch.testing.assert_close(mixer.means[h, c], 0.9 * before[h, c] + 0.1 * goal)


def test_the_ports_memory_keeps_causal_queries_from_seeing_nothing() -> None:
    with pytest.raises(InputError, match="memory is at least 1"):
        PortRoutingAttention(16, 4, 3, 6, memory=0)
    assert PortRoutingAttention(16, 4, 3, 6).memory_key.shape == (4, 3, 1, 4)
    assert PortRoutingAttention(16, 4, 3, 6, share_qk=True).memory_key.shape == (4, 3, 0, 4)


def test_spherical_means_find_blobs() -> None:
    torch.manual_seed(0)
    centres = torch.eye(8)[:4]
    label = torch.randint(4, (2, 1, 100))
    x = nn.functional.normalize(centres[label] + 0.05 * torch.randn(2, 1, 100, 8), dim=-1)
    means = centres[None] + 0.3 * torch.randn(1, 4, 8)
    for _ in range(5):
        means = member_means(x, means)
    assert ((x @ means.mT).argmax(-1) == label).float().mean() > 0.99


def test_clusters_of_the_square_root_cost_less_memory_and_work_than_one_of_all() -> None:
    """Bytes kept for the backward pass and multiplications, counted, from 256 to 1,024 tokens."""

    def cost(tokens: int, clusters: int, window: int) -> tuple[int, int]:
        torch.manual_seed(0)
        mixer, kept = RoutingAttention(16, 2, 2, clusters, window, share_qk=True), []
        x = torch.randn(1, tokens, 16)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            mixer.eval()(x)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mixer(x)
        return sum(kept), counter.get_total_flops()

    short, long = (cost(n, int(n**0.5), int(n**0.5)) for n in (256, 1024))
    dense_short, dense_long = (cost(n, 1, n) for n in (256, 1024))
    for n, most in ((0, 1.2), (1, 1.6)):
        assert math.log(long[n] / short[n], 4) <= most
        assert math.log(dense_long[n] / dense_short[n], 4) > 1.7
    assert long[0] <= 0.35 * dense_long[0]
