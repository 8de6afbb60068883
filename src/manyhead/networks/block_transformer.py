"""Block Transformer: global attention between blocks of tokens, local attention within one.

Ho et al., 'Block Transformer: Global-to-Local Language Modeling for Fast Inference', 2024, arXiv
2406.02657, section 2. An embedder makes one vector of a block; the block decoder turns the vectors of
blocks up to b into a context c_b; the token decoder writes block b + 1 from c_b alone.
"""

import copy
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from manyhead.errors import InputError
from manyhead.mixers.multihead import MultiHeadAttention
from manyhead.networks.embedder import LookupEmbedder, ProjectionEmbedder
from manyhead.networks.generation import choose
from manyhead.networks.transformer import Stack, Transformer

Interface = Literal["prefix", "summation", "cross_attention"]


def neox_stack(channels: int, depth: int, heads: int, *, rotary: float = 0.25, cross: bool = False) -> Stack:
    """A causal GPT-NeoX stack: parallel residuals, rotary positions on a quarter of each head."""

    def mixer(level: int) -> MultiHeadAttention:
        return MultiHeadAttention(channels, heads, causal=True, rotary=rotary)

    def looks(level: int) -> MultiHeadAttention:
        return MultiHeadAttention(channels, heads, cross=True, causal=True)

    stack = Stack(channels, mixer, depth, cross=looks if cross else None, arrangement="parallel")
    for module in stack.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return stack


class BlockState(NamedTuple):
    """What a stream of blocks carries: the block decoder's caches and the last context."""

    layers: tuple[Any, ...]
    context: Tensor


class TokenDecoder(nn.Module):
    """Write the tokens of a block from one context embedding.

    Args:
        vocabulary, block_length, depth, heads: sizes.
        context_channels: size of a context embedding.
        channels: size of a token's vector.
        interface: 'prefix' puts the context in front as `prefix` vectors; 'summation' adds it to
            begin-of-sequence and tokens (MegaByte's way); 'cross_attention' looks at it.
        prefix: vectors that the context becomes in front, P.
        bos: token id that stands before the first token in the two other interfaces.
        rotary: fraction of each head with rotary positions.
    """

    def __init__(
        self,
        vocabulary: int,
        block_length: int,
        context_channels: int,
        channels: int,
        depth: int,
        heads: int,
        *,
        interface: Interface = "prefix",
        prefix: int = 2,
        bos: int = 0,
        rotary: float = 0.25,
    ) -> None:
        super().__init__()
        if interface not in ("prefix", "summation", "cross_attention"):
            raise InputError(f"interface is prefix, summation or cross_attention; got {interface!r}")
        self.interface, self.block_length, self.bos = interface, block_length, bos
        self.count = prefix if interface == "prefix" else block_length
        self.embeddings = nn.Embedding(vocabulary, channels)
        nn.init.normal_(self.embeddings.weight, std=0.02)
        self.expansion = nn.Linear(context_channels, self.count * channels)
        nn.init.normal_(self.expansion.weight, std=context_channels**-0.5)
        nn.init.zeros_(self.expansion.bias)
        self.stack = neox_stack(channels, depth, heads, rotary=rotary, cross=interface == "cross_attention")
        self.output = nn.Linear(channels, vocabulary, bias=False)
        nn.init.normal_(self.output.weight, std=0.02)

    @property
    def capacity(self) -> int:
        """Entries that its cache may hold, whatever the length of the text."""
        return self.block_length + (self.count - 1 if self.interface == "prefix" else 0)

    def forward(self, context: Tensor, ids: Tensor) -> Tensor:
        """Logits `(blocks, block_length, vocabulary)` of blocks `ids` given contexts `(blocks, channels)`."""
        first, expanded = self._begin(context)
        tokens = self.embeddings(ids[:, :-1])
        if self.interface == "summation":
            tokens = tokens + expanded[:, 1:]
        x = torch.cat([first, tokens], 1)
        y = self.stack(x, expanded if self.interface == "cross_attention" else None)
        logits: Tensor = self.output(y[:, -self.block_length :])
        return logits

    @torch.no_grad()
    def write(self, context: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Write a block token by token: ids `(batch, block_length)` and their logits."""
        looked, state = None, self.stack.initial_state(len(context), self.capacity)
        x, expanded = self._begin(context)
        if self.interface == "cross_attention":
            looked = expanded
        ids, logits = [], []
        for place in range(self.block_length):
            y, state = self.stack.extend(x, state, looked)
            logits.append(self.output(y[:, -1]))
            ids.append(choose(logits[-1], **options))
            x = self.embeddings(ids[-1][:, None])
            if self.interface == "summation" and place + 1 < self.block_length:
                x = x + expanded[:, place + 1 : place + 2]
        return torch.stack(ids, 1), torch.stack(logits, 1)

    def _begin(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """What stands before the first token, and the expanded context `(blocks, count, channels)`."""
        expanded = self.expansion(context).reshape(len(context), self.count, -1)
        if self.interface == "prefix":
            return expanded, expanded
        begin = self.embeddings(torch.full((len(context), 1), self.bos, device=context.device))
        return begin + expanded[:, :1] if self.interface == "summation" else begin, expanded


class BlockTransformer(nn.Module):
    """A language model with a global decoder of blocks and a local decoder of tokens.

    Args:
        vocabulary: number of tokens.
        embedder: maps ids `(..., block_length)` to `(..., channels)`.
        blocks: causal stack over block embeddings.
        tokens: the token decoder.
        pad: token id that fills incomplete blocks.

    Raises:
        InputError: as its parts do.
    """

    def __init__(self, embedder: nn.Module, blocks: Stack, tokens: TokenDecoder, *, pad: int = 0) -> None:
        super().__init__()
        self.embedder, self.blocks, self.tokens, self.pad = embedder, blocks, tokens, pad
        self.block_length = tokens.block_length

    @classmethod
    def build(
        cls,
        vocabulary: int,
        channels: int,
        depth: tuple[int, int] = (6, 6),
        heads: int = 8,
        *,
        block_length: int = 4,
        token_channels: int | None = None,
        embedder: nn.Module | None = None,
        pad: int = 0,
        **options: Any,
    ) -> "BlockTransformer":
        """Build the paper's model: lookup embedder, NeoX stacks of `depth` (block, token) layers.

        Args:
            options: further arguments of `TokenDecoder`.
        """
        width = token_channels or channels
        return cls(
            embedder or LookupEmbedder(vocabulary, block_length, channels),
            neox_stack(channels, depth[0], heads),
            TokenDecoder(vocabulary, block_length, channels, width, depth[1], heads, **options),
            pad=pad,
        )

    @classmethod
    def from_vanilla(cls, model: Transformer, block_length: int = 4, prefix: int = 2) -> "BlockTransformer":
        """Begin uptraining: halve a decoder's layers into block and token decoder, section 3.6.

        The embedder starts as the mean of the tokens' embeddings, the prefix as copies of the context.
        """
        layers = len(model.stack.layers)
        channels, vocabulary = model.stack.channels, model.output.out_features
        mixer = model.stack.layers[0].mixer
        if layers < 2 or not isinstance(mixer, MultiHeadAttention):
            raise InputError("uptraining starts from softmax attention with two layers or more")
        embedder = ProjectionEmbedder(vocabulary, block_length, channels)
        tokens = TokenDecoder(vocabulary, block_length, channels, channels, 1, mixer.heads, prefix=prefix)
        blocks = copy.deepcopy(model.stack)
        tokens.stack = copy.deepcopy(model.stack)
        blocks.layers, tokens.stack.layers = (
            blocks.layers[: (layers + 1) // 2],
            tokens.stack.layers[(layers + 1) // 2 :],
        )
        eye = torch.eye(channels)
        with torch.no_grad():
            for table in (embedder.embeddings, tokens.embeddings):
                table.weight.copy_(model.embedding.tokens.weight)
            tokens.output.weight.copy_(model.output.weight)
            embedder.projection.weight.copy_(eye.repeat(1, block_length) / block_length)
            tokens.expansion.weight.copy_(eye.repeat(prefix, 1))
        return cls(embedder, blocks, tokens)

    def contexts(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and contexts of blocks, each `(batch, blocks, channels)`.

        Args:
            ids: `(batch, blocks, block_length)`.
            mask: True for real tokens, likewise; blocks without any are left out of attention.
        """
        embedded = self.embedder(ids)
        options = {} if mask is None or mask.any(-1).all() else {"padding": ~mask.any(-1)}
        return embedded, self.blocks(embedded, **options)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(batch, blocks - 1, block_length, vocabulary)` of all blocks but the first."""
        _, context = self.contexts(ids, mask)
        logits = self.tokens(context[:, :-1].flatten(0, 1), ids[:, 1:].flatten(0, 1))
        by_block: Tensor = logits.reshape(*ids[:, 1:].shape, -1)
        return by_block

    def loss(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        block_loss: Literal["none", "contrastive", "mse"] = "none",
        autoencoding: bool = False,
        temperature: float = 0.07,
    ) -> Tensor:
        """Mean cross-entropy of real tokens from the second block on, with the paper's optional terms.

        Args:
            ids, mask: as in `contexts`.
            block_loss: let a context resemble the next block's embedding, against the batch or by squares.
            autoencoding: let the token decoder also write a block from its own embedding.
            temperature: of the contrastive term.
        """
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        embedded, context = self.contexts(ids, mask)
        real = mask[:, 1:].any(-1)  # blocks to predict
        target, known = ids[:, 1:][real], mask[:, 1:][real]
        logits = self.tokens(context[:, :-1][real], target)
        total = cross_entropy(logits[known], target[known])
        goal = embedded[:, 1:][real]
        if block_loss == "mse":
            total = total + mse_loss(context[:, :-1][real], goal.detach())
        elif block_loss == "contrastive":
            alike = normalize(context[:, :-1][real], dim=-1) @ normalize(goal.detach(), dim=-1).mT
            total = total + cross_entropy(alike / temperature, torch.arange(len(alike)))
        elif block_loss != "none":
            raise InputError(f"block_loss is none, contrastive or mse; got {block_loss!r}")
        if autoencoding:
            total = total + cross_entropy(self.tokens(goal, target)[known], target[known])
        return total

    def blocked(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(batch, tokens)` as blocks, padded on the left, and which are real."""
        spare = -ids.shape[1] % self.block_length
        wide = torch.nn.functional.pad(ids, (spare, 0), value=self.pad)
        mask = torch.ones_like(wide, dtype=torch.bool)
        mask[:, :spare] = False
        shape = len(ids), -1, self.block_length
        return wide.reshape(shape), mask.reshape(shape)

    @torch.no_grad()
    def prefill(self, ids: Tensor, capacity: int = 1024) -> BlockState:
        """Read blocks `(batch, blocks, block_length)`; the token decoder has no part in it.

        Args:
            capacity: tokens to make room for; the cache holds a block_length-th as many entries.
        """
        state = self.blocks.initial_state(len(ids), -(-capacity // self.block_length))
        y, state = self.blocks.extend(self.embedder(ids), state)
        return BlockState(state, y[:, -1])

    @torch.no_grad()
    def generate(
        self, ids: Tensor, new_tokens: int, *, stop: int | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Write on from prompts `(batch, tokens)` with caches.

        Args:
            ids: prompts of one length, at least one token.
            new_tokens: real tokens to write.
            stop: token after which a sample writes `pad` only.
            options: temperature, top_k, top_p and generator of `choose`.

        Returns:
            New tokens `(batch, new_tokens)` and the logits they were drawn from.
        """
        if ids.ndim != 2 or ids.shape[1] < 1 or new_tokens < 1:
            raise InputError(
                f"prompts are (batch, tokens) with a token at least, new_tokens at least 1; "
                f"got {tuple(ids.shape)} and {new_tokens}"
            )
        blocks, _ = self.blocked(ids)
        state = self.prefill(blocks, blocks.shape[1] * self.block_length + new_tokens + self.block_length)
        done = torch.zeros(len(ids), dtype=torch.bool)
        written, scores = [], []
        for start in range(0, new_tokens, self.block_length):
            block, logits = self.tokens.write(state.context, **options)
            if stop is not None:
                ended = (block == stop).cumsum(1)
                after = (ended - (block == stop).long() > 0) | done[:, None]
                block, done = block.masked_fill(after, self.pad), done | (ended[:, -1] > 0)
            written.append(block)
            scores.append(logits)
            if done.all() or start + self.block_length >= new_tokens:
                break
            y, layers = self.blocks.extend(self.embedder(block[:, None]), state.layers)
            state = BlockState(layers, y[:, -1])
        return torch.cat(written, 1)[:, :new_tokens], torch.cat(scores, 1)[:, :new_tokens]
