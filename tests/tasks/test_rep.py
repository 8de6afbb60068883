"""Rep-MTL: the contract of balancers, bounds and symmetries of its terms, and explicit affinities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, l1_loss

from manyhead.errors import InputError
from manyhead.tasks import LogSum, Losses, RepMTL, balancer_by_name
from manyhead.tasks.balancers import affinities
from manyhead.tasks.balancers.affinities import anchor_products, similarities
from manyhead.tasks.balancers.rep import alignment, regulation
from manyhead.testing import check_balancer

COUPLED = {
    "heads_ignore_other_tasks": "the regularisers tie the tasks' saliencies together",
    "gives_heads_their_own_gradient": "the regularisers tie the tasks' saliencies together",
    "follows_the_sum_where_tasks_agree": "samples are contrasted even where tasks agree",
    "a_single_task_keeps_its_direction": "samples are contrasted even with a single task",
    "finds_the_shared_parameters_itself": "it needs the representation",
}


def test_keeps_the_contract_of_balancers() -> None:
    check_balancer(lambda names: RepMTL(), told=("shared", "representation"), excuses=COUPLED)
    check_balancer(lambda names: LogSum())


def random(tasks: int, batch: int, channels: int, positions: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, batch, channels, positions, generator=generator, dtype=torch.float64)


def explicit(saliency: Tensor, tau: float, reduce_tasks: str, include_positive: bool) -> Tensor:
    """The alignment as the paper writes it, with channels x channels affinities and loops."""
    tasks, batch = saliency.shape[:2]
    terms = []

    def unit(matrix: Tensor) -> Tensor:
        return matrix.flatten() / matrix.norm()

    anchors = [unit(saliency[:, b].mean(-1).T @ saliency[:, b].mean(-1)) for b in range(batch)]
    for b in range(batch):
        own = [unit(saliency[t, b] @ saliency[t, b].T) for t in range(tasks)]
        positive = torch.stack([torch.exp(anchors[b] @ z / tau) for z in own])
        negative = sum(torch.exp(anchors[b] @ anchors[k] / tau) for k in range(batch) if k != b)
        if reduce_tasks == "logsum":
            total = positive.sum()
            terms.append(-torch.log(total / (negative + total * include_positive)))
        else:
            terms.append(-torch.log(positive / (negative + positive * include_positive)).mean())
    return torch.stack(terms).mean()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(2, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["mean", "logsum"]),
    st.booleans(),
    st.floats(0.1, 3.0),
)
def test_gram_matrices_of_the_short_side_equal_explicit_affinities(
    tasks, batch, channels, positions, reduce, include, tau
) -> None:
    saliency = random(tasks, batch, channels, positions, seed=tasks + 7 * batch)
    found = alignment(saliency, tau, reduce_tasks=reduce, include_positive=include)
    assert float(found) == pytest.approx(float(explicit(saliency, tau, reduce, include)), rel=1e-9, abs=1e-9)


def test_the_gradient_of_the_gram_form_is_that_of_the_explicit_form() -> None:
    for shape in ((3, 4, 6, 2), (2, 3, 2, 7)):
        ours, theirs = random(*shape).requires_grad_(), random(*shape).requires_grad_()
        alignment(ours, 0.5).backward()
        explicit(theirs, 0.5, "mean", False).backward()
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("channels", "tasks"), [(7, 1), (5, 4), (40, 2), (9, 3)])
@pytest.mark.parametrize("piece", [1, 50, 1 << 20])
def test_anchors_are_compared_alike_by_column_by_affinity_and_in_pieces(
    channels, tasks, piece, monkeypatch
) -> None:
    # explicit affinities and autograd are the reference; a piece of 1 takes one row at a time
    monkeypatch.setattr(affinities, "PIECE", piece)
    anchor = random(1, 6, channels, tasks)[0].requires_grad_()
    whole = (anchor @ anchor.mT).flatten(1)
    weight = random(1, 1, 6, 6, seed=1)[0, 0]  # not symmetric
    (expected,) = torch.autograd.grad((whole @ whole.T * weight).sum(), anchor)
    for route in (anchor_products, affinities._ByColumn.apply, affinities._ByAffinity.apply):
        found = route(anchor)
        torch.testing.assert_close(found, whole @ whole.T)
        torch.testing.assert_close(torch.autograd.grad((found * weight).sum(), anchor)[0], expected)


def test_comparing_anchors_holds_less_than_all_pairs_of_columns() -> None:
    # 64 samples x 16 tasks: the products of all pairs of columns would be a million numbers
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    anchor = torch.randn(64, 8, 16).requires_grad_()
    with Watch():
        anchor_products(anchor).sum().backward()
    assert largest <= 64 * 16 * 8 * 8  # batch tasks min(channels, positions)^2, with positions above 8


def test_entropy_stays_between_zero_and_the_logarithm_of_the_tasks() -> None:
    for tasks in (1, 2, 5):
        found = float(regulation(random(tasks, 3, 4, 6)))
        assert -1e-9 <= found <= math.log(tasks) + 1e-9
    equal = random(1, 3, 4, 6).repeat(3, 1, 1, 1) * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1)
    assert float(regulation(equal)) == pytest.approx(math.log(3))
    owned = torch.zeros(3, 2, 4, 6, dtype=torch.float64)
    for position in range(6):
        owned[position % 3, :, :, position] = 1.0
    assert float(regulation(owned)) == pytest.approx(0.0, abs=1e-9)
    owned[:, :, :, 0] = 0.0  # nobody's position is left out: four owned by one, one shared by all
    owned[:, :, :, 1] = 2.0
    assert float(regulation(owned)) == pytest.approx(math.log(3) / 5)
    assert float(regulation(torch.zeros(2, 2, 3, 4))) == 0.0


def test_terms_do_not_see_a_common_scale_nor_the_order_of_samples_and_tasks() -> None:
    saliency = random(3, 4, 5, 6)
    for term in (regulation, lambda s: alignment(s, 0.5)):
        plain = float(term(saliency))
        assert float(term(1e-3 * saliency)) == pytest.approx(plain, rel=1e-6)
        assert float(term(saliency[torch.tensor([2, 0, 1])])) == pytest.approx(plain)
        assert float(term(saliency[:, torch.tensor([3, 1, 0, 2])])) == pytest.approx(plain)
        one_louder = torch.cat([5 * saliency[:1], saliency[1:]])
        assert abs(float(term(one_louder)) - plain) > 1e-3
    rotation = torch.linalg.qr(random(1, 1, 5, 5)[0, 0]).Q
    turned = torch.einsum("cd,tbdp->tbcp", rotation, saliency)
    assert float(alignment(turned, 0.5)) == pytest.approx(float(alignment(saliency, 0.5)))
    assert abs(float(regulation(turned)) - float(regulation(saliency))) > 1e-3


def test_alignment_survives_saliencies_whose_fourth_power_is_below_float32() -> None:
    saliency = random(3, 4, 5, 6)
    tiny = alignment((1e-15 * saliency).float(), 0.5)
    assert float(tiny) == pytest.approx(float(alignment(saliency, 0.5)), rel=1e-4)


def test_a_sample_that_is_told_with_certainty_has_a_finite_gradient() -> None:
    saliency = random(3, 4, 5, 6).float()
    saliency[1, 2] *= 1e-42  # so small that its inverse is infinite
    saliency.requires_grad_()
    alignment(saliency, 0.5).backward()
    assert torch.isfinite(saliency.grad).all()
    assert not saliency.grad[1, 2].any()


def test_equal_saliencies_at_one_position_are_one_with_their_anchor() -> None:
    near, far = similarities(random(1, 3, 4, 1).repeat(3, 1, 1, 1))
    assert near.tolist() == [pytest.approx([1.0] * 3)] * 3
    # two samples: each anchor has the other as its one negative
    saliency = random(2, 2, 4, 3)
    near, far = similarities(saliency)
    expected = (far[0, 1] / 0.5 - near.mean() / 0.5).item()
    assert float(alignment(saliency, 0.5)) == pytest.approx(expected)


def test_tasks_without_a_label_are_left_out_of_a_sample() -> None:
    saliency = random(2, 3, 4, 5)
    saliency[1, 0] = 0.0  # sample 0 has the first task only
    near, far = similarities(saliency)
    terms = []
    for b in range(3):
        partners = near[:1, 0] if b == 0 else near[:, b]
        others = torch.stack([far[b, k] for k in range(3) if k != b]) / 0.5
        terms.append(others.logsumexp(0) - partners.mean() / 0.5)
    assert float(alignment(saliency, 0.5)) == pytest.approx(float(torch.stack(terms).mean()))
    saliency[:, 2] = 0.0  # sample 2 has no task: neither anchor nor negative
    assert float(alignment(saliency, 0.5)) == pytest.approx(float(alignment(saliency[:, :2], 0.5)))


# -- through a network -----------------------------------------------------------------------------------


class Network(nn.Module):
    """Tokens of four channels, two heads that pool them; `curved` tells cross-entropy from L1."""

    def __init__(self, curved: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.curved = curved
        self.encoder = nn.Linear(3, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.double()

    def losses(self) -> Losses:
        generator = torch.Generator().manual_seed(4)
        z = self.encoder(torch.randn(5, 6, 3, generator=generator, dtype=torch.float64)).tanh()
        label = torch.tensor([0, 1, 2, 0, 1])
        found = {}
        for name, head in zip("ab", self.heads, strict=True):
            logits = head(z.mean(1))
            found[name] = (
                cross_entropy(logits, label) if self.curved else l1_loss(logits, logits.detach() - 1)
            )
        return Losses(found, representation=z, shared=self.encoder.parameters())

    def gradient(self, balancer) -> dict[str, Tensor]:
        self.zero_grad()
        losses = self.losses()
        balancer.backward(losses, representation=losses.representation)
        return {name: parameter.grad.clone() for name, parameter in self.named_parameters()}


def test_without_its_terms_it_is_the_sum_of_logarithms() -> None:
    model = Network()
    found, plain = model.gradient(RepMTL(0.0, 0.0)), model.gradient(LogSum())
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    values = model.losses()
    sum(torch.log(value + 1e-8) for value in values.values()).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, 2 * plain[name], rtol=1e-12), name  # added to what was there


@pytest.mark.parametrize("kind", ["log", "raw"])
def test_the_second_order_gradient_is_that_of_finite_differences(kind: str) -> None:
    model, balancer = Network(), RepMTL(0.9, 0.7, saliency_of=kind)
    weight = model.encoder.weight.detach().clone()
    found = model.gradient(balancer)["encoder.weight"]

    def total(change: Tensor) -> float:
        with torch.no_grad():
            model.encoder.weight.copy_(weight + change)
        return float(balancer.combine(model.losses()).detach())

    for index in ((0, 0), (2, 1), (3, 2)):
        step = torch.zeros_like(weight)
        step[index] = 1e-6
        assert (total(step) - total(-step)) / 2e-6 == pytest.approx(float(found[index]), rel=1e-5, abs=1e-8)


def test_piecewise_linear_losses_send_the_encoder_nothing_of_raw_saliency() -> None:
    for curved in (False, True):
        model = Network(curved)
        plain = model.gradient(LogSum())
        found = model.gradient(RepMTL(saliency_of="raw"))
        same = torch.allclose(found["encoder.weight"], plain["encoder.weight"], rtol=1e-12)
        assert same != curved
        assert not torch.allclose(found["heads.0.weight"], plain["heads.0.weight"])


def test_several_representations_are_averaged_and_channels_may_stand_first() -> None:
    model, balancer = Network(), RepMTL()
    losses = model.losses()
    z = losses.representation
    once, twice = (float(balancer.regulariser(losses, [z] * n).detach()) for n in (1, 2))
    assert twice == pytest.approx(once)
    saliency = RepMTL(channel_axis=1).saliency(losses, z)
    assert torch.equal(saliency, balancer.saliency(losses, z).mT)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RepMTL(-0.1), "lambda_tsr must be finite and not negative, got -0.1"),
        (lambda: RepMTL(lambda_csa=float("inf")), "lambda_csa must be finite"),
        (lambda: RepMTL(tau=0.0), "tau must be finite and above zero, got 0.0"),
        (lambda: RepMTL(saliency_of="loss"), "saliency_of must be 'log' or 'raw', got 'loss'"),
        (lambda: RepMTL(reduce_tasks="max"), "reduce_tasks must be 'mean' or 'logsum', got 'max'"),
        (lambda: RepMTL(channel_axis=0), "channel_axis must not be 0"),
        (lambda: RepMTL(channel_axis=3).combine(Network().losses()), "channel_axis must be an axis after"),
        (lambda: balancer_by_name("rep-mtl", tau=-1.0), "tau must be finite"),
        (lambda: RepMTL().backward(dict(Network().losses())), "needs losses that carry one representation"),
        (lambda: alignment(random(2, 1, 3, 4), 0.5), "must have at least 2, got 1"),
        (lambda: LogSum().combine({"a": torch.tensor(-1.0)}), "the loss of task 'a' is -1: it has no log"),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_batches_of_separate_tasks_are_refused_unless_asked_for() -> None:
    z = torch.randn(4, 3, requires_grad=True) * 1
    losses = Losses({"a": z[:2].square().mean(), "b": z[2:].square().mean()}, representation=z)
    with pytest.raises(InputError, match="no sample of the batch has a label for two tasks"):
        RepMTL().combine(losses)
    assert torch.isfinite(RepMTL(multi_input="concat").combine(losses))
    losses = Losses({"a": z.mean() + 2, "b": torch.ones(1, requires_grad=True).sum()}, representation=z)
    with pytest.raises(InputError, match="task 'b' does not depend on the representation"):
        RepMTL().combine(losses)
