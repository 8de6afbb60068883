"""Clustered attention as a widely used PyTorch port of the Routing Transformer computes it.

It differs from the paper's algorithm (`manyhead.kernels.clusters`): tokens are clustered at length one,
logits are scaled by d^-0.5 with only shared keys normed, a token sees itself as a last resort, each
cluster has memory slots of its own, and tokens are averaged with a smaller constant. Offered because
trained models depend on it.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from manyhead.kernels.clusters import scatter_mean, take

SELF_LOGIT = -5e4


def clustered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    means: Tensor,
    window: int,
    *,
    shared_qk: bool,
    causal: bool,
    memory_key: Tensor | None = None,
    memory_value: Tensor | None = None,
    commitment: float = 1e-4,
    epsilon: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Attend inside the clusters around `means`.

    Args:
        q: queries `(batch, heads, tokens, d)`.
        k: keys, likewise; the queries again where shared.
        v: values, likewise.
        means: centroids of length one, `(heads, clusters, d)`.
        window: tokens of a cluster.
        shared_qk: whether keys are the queries.
        causal: whether a query sees keys up to its own position only.
        memory_key: `(heads, clusters, slots, d)`, keys that every query of a cluster sees.
        memory_value: likewise.
        commitment: weight of the commitment loss.
        epsilon: added to the number of clusters that a token is averaged over.

    Returns:
        `(batch, heads, tokens, d)` and the weighted commitment loss.
    """
    tokens = q.shape[2]
    unit = normalize(q if shared_qk else torch.cat([q, k], 2), dim=-1)
    distance = unit @ means.mT
    heads = torch.arange(len(means), device=q.device)[:, None]
    loss = commitment * (unit - means[heads, distance.argmax(-1)]).square().mean()
    q_index = distance[:, :, :tokens].mT.topk(min(window, tokens), -1).indices
    if shared_qk:
        k, k_index = normalize(k, dim=-1), q_index
    else:
        k_index = distance[:, :, tokens:].mT.topk(min(window, k.shape[2]), -1).indices
    keys, values = take(k, k_index), take(v, k_index)
    logits = take(q, q_index) @ keys.mT * q.shape[-1] ** -0.5
    if causal:
        later = q_index[..., :, None] < k_index[..., None, :]
        logits = logits.masked_fill(later, -torch.finfo(logits.dtype).max)
    if shared_qk:
        logits = logits.masked_fill(q_index[..., :, None] == k_index[..., None, :], SELF_LOGIT)
    if memory_key is not None and memory_value is not None and memory_key.shape[2]:
        of_memory = take(q, q_index) @ memory_key.mT * q.shape[-1] ** -0.5
        logits = torch.cat([of_memory, logits], -1)
        values = torch.cat([memory_value.expand(len(q), -1, -1, -1, -1), values], 3)
    out = logits.softmax(-1) @ values
    return scatter_mean(out, q_index, torch.ones_like(out[..., 0]), tokens, epsilon), loss
