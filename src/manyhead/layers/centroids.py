"""Centroids of queries and keys, learned by online k-means: one set a head, averaged exponentially.

Roy et al., 'Efficient Content-Based Sparse Attention with Routing Transformers', 2020, arXiv 2003.05997,
section 4.1, in the form of the official code (Laplace-smoothed counts, no gradient to the centroids).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, one_hot


def unit_norm(x: Tensor) -> Tensor:
    """Layer norm over the last axis without gain and bias (eps 1e-6): every vector has length sqrt(d)."""
    return layer_norm(x, x.shape[-1:], eps=1e-6)


class Centroids(nn.Module):
    """Cluster centres of every head and their running sums.

    Args:
        heads: routing heads.
        clusters: centres of a head.
        head_dim: features.
        decay: of the running sums and counts.
        initial_count: the counts' start. The official code starts at 0 while the sums start at the
            centres, which rescales the centres in the first updates; 1 keeps them in place.
    """

    means: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self, heads: int, clusters: int, head_dim: int, decay: float = 0.999, initial_count: float = 1.0
    ) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, 1e-5
        means = unit_norm(torch.randn(heads, clusters, head_dim))
        self.register_buffer("means", means)
        self.register_buffer("sums", means.clone())
        self.register_buffer("counts", torch.full((heads, clusters), float(initial_count)))

    def scores(self, x: Tensor) -> Tensor:
        """Products of `(batch, heads, tokens, d)` with the centres, `(batch, heads, tokens, clusters)`."""
        return x @ self.means.mT

    def commitment(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mean squared distance to the nearest centre, over all elements; its gradient moves the tokens.

        Args:
            x: normed tokens `(batch, heads, tokens, head_dim)`.
            keep: True where a token counts, `(batch, tokens)`.
        """
        nearest = self.scores(x.detach()).argmax(-1)  # (batch, heads, tokens)
        heads = torch.arange(len(self.means), device=x.device)[:, None]
        squares = (x - self.means[heads, nearest]).square()
        return squares.mean() if keep is None else squares.transpose(1, 2)[keep].mean()

    @torch.no_grad()
    def update(self, x: Tensor, keep: Tensor | None = None) -> None:
        """Move the centres towards the tokens nearest to them.

        Args:
            x: normed tokens `(batch, heads, tokens, head_dim)`.
            keep: True where a token counts, `(batch, tokens)`.
        """
        members = one_hot(self.scores(x).argmax(-1), self.means.shape[1]).to(x.dtype)
        if keep is not None:
            members = members * keep[:, None, :, None]
        self.counts.lerp_(members.sum((0, 2)), 1 - self.decay)
        self.sums.lerp_(torch.einsum("bhnc,bhnd->hcd", members, x), 1 - self.decay)
        total = self.counts.sum(-1, keepdim=True)
        smooth = (self.counts + self.epsilon) / (total + self.counts.shape[-1] * self.epsilon) * total
        self.means.copy_(self.sums / smooth[..., None])
