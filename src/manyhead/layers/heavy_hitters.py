"""A cache that keeps the most recent tokens and those that past queries looked at most.

Zhang et al., 'H2O: Heavy-Hitter Oracle', 2023, arXiv 2306.14048. Every stored key has the sum of the softmax
weights that it was given so far; when the budget is exceeded, the key with the smallest sum goes, the most
recent ones apart. Every head chooses for itself.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manyhead.errors import InputError

ROWS = 256  # queries of a prompt whose weights are held at once


def halves(tokens: int, share: float) -> tuple[int, int]:
    """Slots for heavy hitters and for recent tokens that together hold a share of a prompt.

    Raises:
        InputError: if the share is not above 0 and up to 1, or leaves no room.
    """
    budget = round(tokens * share)
    if not 0 < share <= 1 or budget < 1:
        raise InputError(
            f"share lies above 0 and up to 1 and leaves room for a token, got {share} of {tokens}"
        )
    return budget // 2, budget - budget // 2


@dataclass(frozen=True)
class HeavyHitterCache:
    """Keys, values and scores of at most `heavy + recent` tokens of every head.

    The tensors are written in place: after `attend`, use the returned cache and drop the old one. Keys keep
    the positions that they were turned by.

    Args:
        keys: `(batch, heads, heavy + recent, head_dim)`.
        values: likewise.
        scores: weights that each key has been given, `(batch, heads, heavy + recent)`.
        positions: place of each in the sequence, likewise, -1 where a slot is empty.
        heavy: slots for what was looked at most.
        recent: slots for the newest tokens.
        length: tokens seen.
    """

    keys: Tensor
    values: Tensor
    scores: Tensor
    positions: Tensor
    heavy: int
    recent: int
    length: int = 0

    @classmethod
    def empty(
        cls, batch: int, heads: int, heavy: int, recent: int, head_dim: int, like: Tensor
    ) -> "HeavyHitterCache":
        """A cache without tokens, of the device and type of `like`.

        Raises:
            InputError: if a number is negative, or no recent token has room.
        """
        if heavy < 0 or recent < 1:
            raise InputError(f"heavy is at least 0 and recent at least 1, got {heavy} and {recent}")
        shape = (batch, heads, heavy + recent)
        return cls(
            like.new_zeros(*shape, head_dim),
            like.new_zeros(*shape, head_dim),
            like.new_zeros(shape),
            torch.full(shape, -1, dtype=torch.long, device=like.device),
            heavy,
            recent,
        )

    @property
    def budget(self) -> int:
        """Tokens that have room."""
        return self.heavy + self.recent

    @property
    def held(self) -> int:
        """Tokens stored for every head."""
        return min(self.length, self.budget)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values held, filled or not."""
        return self.keys.nbytes + self.values.nbytes

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, "HeavyHitterCache"]:
        """One step: look at what is stored and at the new token, count the weights, drop one token if full.

        Args:
            query: `(batch, heads, queries, head_dim)`; several where query heads share this one.
            key: of the new token, `(batch, heads, head_dim)`.
            value: likewise.

        Returns:
            Outputs `(batch, heads, queries, head_dim)`, and the next cache.
        """
        n, at = self.held, self.length
        with torch.no_grad():
            key, value = key.detach()[:, :, None], value.detach()[:, :, None]
        keys = torch.cat([self.keys[:, :, :n], key], 2)
        values = torch.cat([self.values[:, :, :n], value], 2)
        weights = (query @ keys.mT * query.shape[-1] ** -0.5).softmax(-1)
        out = weights @ values
        given = weights.detach().sum(2)  # (batch, heads, n + 1)
        self.scores[:, :, :n] += given[:, :, :n]
        if n < self.budget:
            slot = torch.full(self.scores.shape[:2], n, device=key.device)
        else:  # the smallest sum among those that are not among the newest, the new token counted in
            old = self.positions <= at - self.recent
            slot = self.scores.masked_fill(~old, torch.inf).argmin(-1)
        index = slot[..., None]
        self.scores.scatter_(-1, index, given[:, :, n:])
        self.positions.scatter_(-1, index, at)
        wide = index[..., None].expand(-1, -1, -1, key.shape[-1])
        self.keys.scatter_(2, wide, key)
        self.values.scatter_(2, wide, value)
        return out, replace(self, length=at + 1)

    def prefill(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, "HeavyHitterCache"]:
        """Read a prompt at once with full causal attention, then drop down to the budget.

        Args:
            query: `(batch, heads, group, tokens, head_dim)`; `group` query heads share a key head.
            key: `(batch, heads, tokens, head_dim)`.
            value: likewise.

        Returns:
            Outputs like `query`, and the next cache.

        Raises:
            InputError: if the cache holds tokens already.
        """
        if self.length:
            raise InputError(f"a prompt is read into an empty cache; this one has seen {self.length} tokens")
        tokens = key.shape[2]
        at = torch.arange(tokens, device=key.device)
        scores, outs = self.scores.new_zeros(*key.shape[:3]), []
        for rows in at.split(ROWS):
            logits = query[..., rows, :] @ key[:, :, None].mT * key.shape[-1] ** -0.5
            weights = logits.masked_fill(at > rows[:, None], -torch.inf).softmax(-1)
            outs.append(weights @ value[:, :, None])
            scores += weights.detach().sum((2, 3))
        newest = at >= tokens - self.recent
        kept = min(tokens, self.budget)
        index = scores.masked_fill(newest, torch.inf).topk(kept, -1).indices.sort(-1).values
        wide = index[..., None].expand(-1, -1, -1, key.shape[-1])
        self.keys[:, :, :kept] = key.detach().gather(2, wide)
        self.values[:, :, :kept] = value.detach().gather(2, wide)
        self.scores[:, :, :kept] = scores.gather(-1, index)
        self.positions[:, :, :kept] = index
        return torch.cat(outs, -2), replace(self, length=tokens)
