"""Routing attention against the official functions and against a widely used PyTorch port."""

from typing import Any

import torch

from manyhead.kernels.clusters import best_members, cluster_attention
from manyhead.kernels.clusters_normalised import clustered_attention
from manyhead.layers.centroids import Centroids, unit_norm


def official(config: Any, arrays: Any) -> dict[str, tuple[Any, Any]]:
    means = torch.tensor(arrays["w/means"])
    centroids = Centroids(*means.shape, config["decay"], 0.0)
    centroids.epsilon = config["ema_eps"]
    q, k, v = (torch.tensor(arrays[f"off_{name}"]) for name in "qkv")
    q = unit_norm(q)
    k = q if config["share_qk"] else unit_norm(k)
    centroids.means.copy_(means)
    q_index = best_members(centroids.scores(q), config["window"])
    k_index = best_members(centroids.scores(k), config["window"])
    out = cluster_attention(q, k, v, q_index, k_index, causal=config["causal"], epsilon=config["count_eps"])
    loss = config["beta"] * (centroids.commitment(q) + centroids.commitment(k))
    centroids.counts.copy_(torch.tensor(arrays["off_ema_count0"]))
    centroids.sums.copy_(torch.tensor(arrays["off_ema_means0"]))
    centroids.update(q)
    return {
        "off_q_idx": (q_index.to(torch.int32), arrays["off_q_idx"]),
        "off_k_idx": (k_index.to(torch.int32), arrays["off_k_idx"]),
        "off_out": (out, arrays["off_out"]),
        "off_loss": (loss, arrays["off_loss"]),
        "off_ema_count1": (centroids.counts, arrays["off_ema_count1"]),
        "off_ema_means1": (centroids.sums, arrays["off_ema_means1"]),
        "off_means1": (centroids.means, arrays["off_means1"]),
    }


def port(config: Any, arrays: Any) -> dict[str, tuple[Any, Any]]:
    q, k, v = (torch.tensor(arrays[f"luc_{name}"], requires_grad=True) for name in "qkv")
    out, loss = clustered_attention(
        q,
        q if config["shared_qk"] else k,
        v,
        torch.tensor(arrays["w/kmeans.means"]),
        config["window"],
        shared_qk=config["shared_qk"],
        causal=config["causal"],
        memory_key=torch.tensor(arrays["w/mem_key"]),
        memory_value=torch.tensor(arrays["w/mem_value"]),
        commitment=config["commitment"],
        epsilon=config["count_eps"],
    )
    out.backward(torch.tensor(arrays["luc_g"]))
    return {
        "luc_out": (out, arrays["luc_out"]),
        "luc_aux_loss": (loss, arrays["luc_aux_loss"]),
        "luc_grad_q": (q.grad, arrays["luc_grad_q"]),
        "luc_grad_v": (v.grad, arrays["luc_grad_v"]),
    }


def run(arrays: Any) -> dict[str, tuple[Any, Any]]:
    config = arrays["config"]
    return official(config["official"], arrays) | port(config["lucid"], arrays)
