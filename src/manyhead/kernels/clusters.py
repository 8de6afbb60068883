"""Attention inside clusters of tokens: each cluster's queries see the same cluster's keys.

Roy et al., 2020, arXiv 2003.05997, section 4.1. Two ways to form clusters: the `window` best of the whole
sequence (balanced, but what a cluster keeps depends on later tokens), or strictly causal, the `window` most
recent of each token's own cluster.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def best_members(scores: Tensor, window: int) -> Tensor:
    """Indices of each cluster's `window` best tokens in order of time, `(batch, heads, clusters, window)`.

    Args:
        scores: `(batch, heads, tokens, clusters)`.
        window: tokens of a cluster; all of them where there are fewer.
    """
    return scores.mT.topk(min(window, scores.shape[2]), -1).indices.sort(-1).values


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens `(batch, heads, tokens, d)` by `(batch, heads, ...)` to `(batch, heads, ..., d)`."""
    flat = index.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.gather(2, flat).reshape(*x.shape[:2], *index.shape[2:], x.shape[-1])


def scatter_mean(parts: Tensor, index: Tensor, present: Tensor, tokens: int, epsilon: float) -> Tensor:
    """Average what several clusters say of a token, `sum / (count + epsilon)`; zero where none does.

    Args:
        parts: `(batch, heads, clusters, window, d)`.
        index: token of each part, `(batch, heads, clusters, window)`.
        present: one where a part counts, of the shape of `index`.
        tokens: number of tokens of the result.
        epsilon: added to the count.
    """
    flat = index.flatten(2)
    total = parts.new_zeros(*parts.shape[:2], tokens, parts.shape[-1])
    weighted = (parts * present[..., None]).flatten(2, 3)
    total = total.scatter_add(2, flat[..., None].expand_as(weighted), weighted)
    count = parts.new_zeros(*parts.shape[:2], tokens).scatter_add(2, flat, present.flatten(2))
    return total / (count + epsilon)[..., None]


def cluster_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_index: Tensor,
    k_index: Tensor,
    *,
    causal: bool = False,
    absent: Tensor | None = None,
    epsilon: float = 0.01,
) -> Tensor:
    """Softmax of unscaled products inside each cluster, averaged over the clusters of a token.

    The causal mask compares true positions. The official code compares ranks inside the cluster, so that
    a query with its own choice of tokens could see later keys.

    Args:
        q: queries `(batch, heads, tokens, d)`.
        k: keys `(batch, heads, keys, d)`.
        v: values `(batch, heads, keys, d)`.
        q_index: queries of each cluster, `(batch, heads, clusters, window)`.
        k_index: keys of each cluster.
        causal: whether a query sees keys up to its own position only.
        absent: True where a key is padding, `(batch, keys)`.
        epsilon: added to the number of clusters that a token is averaged over.

    Returns:
        `(batch, heads, tokens, d)`; zero for tokens in no cluster, or with nothing to see.
    """
    logits = take(q, q_index) @ take(k, k_index).mT
    hidden = torch.zeros_like(logits, dtype=torch.bool)
    if causal:
        hidden = q_index[..., :, None] < k_index[..., None, :]
    if absent is not None:
        missing = absent[:, None].expand(-1, k.shape[1], -1).gather(2, k_index.flatten(2)).view_as(k_index)
        hidden = hidden | missing[..., None, :]
    weights = logits.masked_fill(hidden, -1e9).softmax(-1)
    present = (~hidden.all(-1)).to(q.dtype)
    return scatter_mean(weights @ take(v, k_index), q_index, present, q.shape[2], epsilon)


def recent_members(q_cluster: Tensor, k_cluster: Tensor, clusters: int, window: int) -> tuple[Tensor, Tensor]:
    """The `window` most recent keys of each query's own cluster, itself among them.

    Args:
        q_cluster: cluster of each query, `(batch, heads, tokens)`.
        k_cluster: cluster of each key, likewise.
        clusters: number of clusters.
        window: keys of a query.

    Returns:
        Indices of keys `(batch, heads, tokens, window)`, and which of them are there.
    """
    so_far = one_hot(k_cluster, clusters).cumsum(2)  # members up to and with each position
    order = k_cluster.argsort(dim=-1, stable=True)  # by cluster, then by time
    sizes = so_far[:, :, -1]
    first = (sizes.cumsum(-1) - sizes).gather(-1, q_cluster)
    last = first + so_far.gather(-1, q_cluster[..., None])[..., 0]
    slots = last[..., None] - 1 - torch.arange(window, device=q_cluster.device)
    there = slots >= first[..., None]
    index = order.gather(-1, slots.clamp_min(0).flatten(2)).view_as(slots)
    return index, there


def recent_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, there: Tensor) -> Tensor:
    """Attention of each query to its own list of keys; zero where the list is empty."""
    logits = (q[..., None, :] @ take(k, index).mT)[..., 0, :].masked_fill(~there, -1e9)
    out = (logits.softmax(-1)[..., None, :] @ take(v, index))[..., 0, :]
    return out * there.any(-1, keepdim=True)
