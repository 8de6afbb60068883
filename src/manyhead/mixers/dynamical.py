"""The common form of attention, state spaces and gated recurrences, and conversions between its faces.

Sieber et al., 'Understanding the differences in Foundation Models: Attention, State Space Models, and
Recurrent Neural Networks', 2024, arXiv 2405.15731, section 3: H_i = a_i H_{i-1} + b_i v_i and
y_i = sum over n of c_i H_i + d_i v_i, for every head and channel, with a, b, c, d functions of the input.
"""

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, prod

import torch
from torch import Tensor
from torch.nn.functional import softplus

from manyhead.errors import InputError
from manyhead.layers.scan import linear_scan


@dataclass(frozen=True)
class DynamicalSystem:
    """One recurrence with input-dependent factors.

    Args:
        a: transition, `(batch, length, heads, n, p)`; sizes may be 1 where it does not vary.
        b: input factors, likewise.
        c: output factors, likewise.
        v: what enters, `(batch, length, heads, p)`.
        d: direct path, broadcastable to `v`; None for none.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    v: Tensor
    d: Tensor | None = None

    @property
    def state_size(self) -> int:
        """Numbers that one stream carries from token to token."""
        return (self.b[0, 0] * self.v[0, 0, :, None, :]).numel()

    def recurrent(self) -> Tensor:
        """y by a parallel scan over the states, `(batch, length, heads, p)`."""
        a = self.a.expand(-1, self.v.shape[1], -1, -1, -1)
        states = linear_scan(a, self.b * self.v[..., None, :])
        return self._with_direct((self.c * states).sum(-2))

    def stepwise(self) -> Tensor:
        """y token by token, as a stream computes it."""
        h, found = torch.zeros_like((self.b * self.v[..., None, :])[:, 0]), []
        a, b, c = (t.expand(t.shape[0], self.v.shape[1], *t.shape[2:]) for t in (self.a, self.b, self.c))
        for i in range(self.v.shape[1]):
            h = a[:, i] * h + b[:, i] * self.v[:, i, :, None, :]
            found.append((c[:, i] * h).sum(-2))
        return self._with_direct(torch.stack(found, 1))

    def attention(self) -> Tensor:
        """Phi with y_i = sum over j of Phi_ij v_j, `(batch, heads, p, length, length)`; for small inputs."""
        length = self.v.shape[1]
        a, b, c = (t.expand(t.shape[0], length, *t.shape[2:]) for t in (self.a, self.b, self.c))
        # decay[i, j] = a_i a_{i-1} .. a_{j+1}: a running product down each column below the diagonal
        below = torch.ones(length, length, dtype=torch.bool, device=a.device).tril(-1)
        factors = torch.where(below[..., None, None, None], a[:, :, None], torch.ones_like(a[:, :1, None]))
        decay = factors.cumprod(1)
        phi = (c[:, :, None] * decay * b[:, None]).sum(-2)  # (batch, i, j, heads, p)
        phi = phi * (below | torch.eye(length, dtype=torch.bool, device=a.device))[..., None, None]
        phi = phi.expand(self.v.shape[0], length, length, *self.v.shape[2:])
        if self.d is not None:
            direct = self.d.expand_as(self.v).to(phi.dtype)
            phi = phi + torch.diag_embed(direct.movedim(1, -1)).permute(0, 3, 4, 1, 2)
        return phi.permute(0, 3, 4, 1, 2)

    def apply(self) -> Tensor:
        """y by the attention form."""
        phi = self.attention()
        return torch.einsum("bhpij,bjhp->bihp", phi, self.v.to(phi.dtype))

    def rescaled(self, eta: Tensor) -> "DynamicalSystem":
        """The same map with states divided by a sequence of positive numbers `(batch, length, heads)`."""
        eta = eta[..., None, None]
        before = torch.cat([torch.ones_like(eta[:, :1]), eta[:, :-1]], 1)
        return DynamicalSystem(self.a * before / eta, self.b / eta, self.c * eta, self.v, self.d)

    def _with_direct(self, y: Tensor) -> Tensor:
        return y if self.d is None else y + self.d * self.v


def separable(phi_q: Tensor, psi_k: Tensor, v: Tensor, eta: Tensor) -> DynamicalSystem:
    """Attention y_i = sum over j <= i of phi(q_i) . psi(k_j) v_j / eta_i as a dynamical system.

    Args:
        phi_q, psi_k: features, `(batch, heads, length, n)`.
        v: values, `(batch, heads, length, p)`.
        eta: normaliser, positive, `(batch, heads, length)`; it only has to be known at step i.
    """
    eta = eta.transpose(1, 2)[..., None, None]  # (batch, length, heads, 1, 1)
    before = torch.cat([torch.zeros_like(eta[:, :1]), eta[:, :-1]], 1)
    b, c = (t.transpose(1, 2)[..., None] for t in (psi_k, phi_q))
    return DynamicalSystem(before / eta, b / eta, c, v.transpose(1, 2))


def exponential_features(x: Tensor, order: int) -> Tensor:
    """phi with phi(q) . phi(k) the Taylor sum of exp(q . k / sqrt(m)) up to an order, section 4.1.

    Args:
        x: queries or keys `(..., m)`.
        order: last power kept. An odd order lets the sum turn negative, and its normaliser with it.

    Returns:
        `(..., C(m + order, order))`: every monomial once, with the root of its multiplicity.
    """
    if order < 0:
        raise InputError(f"order is at least 0, got {order}")
    m = x.shape[-1]
    x = x * m**-0.25
    columns = [torch.ones_like(x[..., :1])]
    for power in range(1, order + 1):
        for term in combinations_with_replacement(range(m), power):
            counts = [term.count(i) for i in set(term)]
            weight = prod(1.0 / factorial(count) for count in counts) ** 0.5
            columns.append(x[..., list(term)].prod(-1, keepdim=True) * weight)
    return torch.cat(columns, -1)


def truncated_softmax(q: Tensor, k: Tensor, v: Tensor, order: int) -> DynamicalSystem:
    """Causal softmax attention with its exponential cut after an order, a system of finite state.

    Args:
        q, k: `(batch, heads, length, m)`.
        v: `(batch, heads, length, p)`.
        order: last power kept; even orders keep the normaliser positive.
    """
    phi_q, phi_k = exponential_features(q, order), exponential_features(k, order)
    return separable(phi_q, phi_k, v, (phi_q * phi_k.cumsum(-2)).sum(-1))


def reversed_sigmoid(z: Tensor, alpha: Tensor | float) -> Tensor:
    """sigmoid(-z) ** alpha = exp(-alpha softplus(z)): the state space's transition as a forget gate."""
    return (-alpha * softplus(z)).exp()
