"""A small language model with one mixer a layer, and the loop that trains it on a stream of tokens."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manyhead.mixers.base import Mixer


class PreNormBlock(nn.Module):
    """`x + mixer(norm(x))`, then `x + feed_forward(norm(x))`.

    Args:
        mixer: mixes tokens `(batch, tokens, channels)`.
        channels: features of a token.
        hidden: width of the feed-forward part.
        activation: its non-linearity.
    """

    def __init__(self, mixer: Mixer, channels: int, hidden: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(channels), mixer
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            activation or nn.GELU(),
            nn.Linear(hidden, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm(x))
        out: Tensor = x + self.feed_forward(x)
        return out


class MixerLanguageModel(nn.Module):
    """Token embedding, pre-norm blocks around causal mixers, and logits from the tied embedding.

    Args:
        vocabulary: number of tokens.
        channels: features of a token.
        mixers: one mixer a layer.
        hidden: width of the feed-forward parts; None for `4 channels`.
        positions: longest sequence with learned positions; None for none.
    """

    def __init__(
        self,
        vocabulary: int,
        channels: int,
        mixers: Iterable[Mixer],
        *,
        hidden: int | None = None,
        positions: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, channels)
        self.positions = nn.Embedding(positions, channels) if positions else None
        self.blocks = nn.ModuleList(PreNormBlock(mixer, channels, hidden or 4 * channels) for mixer in mixers)
        self.norm = nn.LayerNorm(channels)
        for table in (self.embedding, self.positions):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `(batch, tokens, vocabulary)` for the token after each of `ids` `(batch, tokens)`."""
        x = self.embedding(ids)
        if self.positions is not None:
            x = x + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x) @ self.embedding.weight.T
        return out


def text_bytes(text: str) -> Tensor:
    """UTF-8 bytes of a text, `(bytes,)` int64."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def train_on_text(
    model: Callable[[Tensor], Tensor],
    weights: Iterable[nn.Parameter],
    ids: Tensor,
    *,
    steps: int,
    batch: int,
    length: int,
    seed: int,
    rate: float = 1e-3,
    penalty: Callable[[], Tensor] | None = None,
    before_step: Callable[[int], object] | None = None,
) -> None:
    """Fit next-token logits to random windows of `ids` by AdamW with warm-up and a cosine schedule.

    Args:
        model: token ids `(batch, length)` to logits.
        weights: parameters to train.
        ids: stream of tokens `(tokens,)`.
        steps: number of updates.
        batch: windows of an update.
        length: tokens of a window.
        seed: of the choice of windows.
        rate: highest learning rate.
        penalty: an extra loss, asked for after every forward pass.
        before_step: called with the number of each step before it.
    """
    weights = list(weights)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(weights, rate, betas=(0.9, 0.95), weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm), rate / 20),
        ],
        [warm],
    )
    for step in range(steps):
        if before_step is not None:
            before_step(step)
        starts = torch.randint(len(ids) - length, (batch,), generator=random)
        window = ids[starts[:, None] + torch.arange(length + 1)]
        loss = cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()


def text_loss(
    model: Callable[[Tensor], Tensor], ids: Tensor, length: int, *, windows: int = 64, batch: int = 16
) -> tuple[float, float]:
    """Mean cross-entropy in nats and share of right guesses over evenly spread windows of `ids`."""
    starts = torch.linspace(0, len(ids) - length - 1, windows).long()
    nats = right = 0.0
    with torch.no_grad():
        for part in torch.split(starts, batch):
            window = ids[part[:, None] + torch.arange(length + 1)]
            logits, target = model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten()
            nats += float(cross_entropy(logits, target, reduction="sum"))
            right += float((logits.argmax(-1) == target).sum())
    count = windows * length
    return nats / count, right / count
