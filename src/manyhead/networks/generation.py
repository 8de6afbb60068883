"""Write on from prompts: greedy, by temperature, among the best k or the likeliest share p.

Fan et al., 2018, arXiv 1805.04833 (top-k); Holtzman et al., 2019, arXiv 1904.09751 (top-p).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from manyhead.errors import InputError

NOTHING = -1  # a sample that is still reading its prompt, or has stopped


class Streamed(Protocol):
    """A model with an explicit state, such as `Transformer`."""

    def initial_state(self, batch: int, capacity: int = 1024) -> Any:
        """State before the first token, with room for `capacity` tokens."""

    def extend(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits `(batch, tokens, vocabulary)` of the next tokens, and the next state."""


def choose(
    logits: Tensor,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token from each row of logits.

    Args:
        logits: `(batch, vocabulary)`.
        temperature: divides the logits; 0 takes the largest.
        top_k: keep the k largest.
        top_p: keep the fewest tokens whose probabilities reach p together; at least one.
        generator: source of randomness.

    Returns:
        Token ids `(batch,)`.

    Raises:
        InputError: if an option is out of its range.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(
            f"temperature is at least 0, top_k at least 1 and top_p above 0 up to 1; "
            f"got {temperature}, {top_k} and {top_p}"
        )
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        chances = ordered.softmax(-1)
        beyond = chances.cumsum(-1) - chances >= top_p  # what lies before a token is enough already
        logits = logits.masked_fill(beyond.gather(-1, order.argsort(-1)), -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def stream(
    model: Streamed,
    prompts: Tensor | Sequence[Sequence[int]],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield new tokens `(batch,)` as they come, -1 for samples that have none at that moment.

    Prompts of several lengths need no padding: the shortest is read at once, then samples with a longer
    one read on while the others already write.

    Args:
        model: a model with an explicit state; put it in evaluation mode first.
        prompts: token ids, `(batch, tokens)` or lists of several lengths, none empty.
        new_tokens: tokens to write for every sample.
        temperature, top_k, top_p, generator: as in `choose`.
        stop: token after which a sample ends.

    Raises:
        InputError: if a prompt is empty or an option out of range.
    """
    rows = [[int(token) for token in row] for row in prompts]
    if not rows or not all(rows) or new_tokens < 1:
        raise InputError(
            f"prompts must not be empty and new_tokens at least 1; got lengths "
            f"{[len(row) for row in rows]} and {new_tokens}"
        )
    lengths = torch.tensor([len(row) for row in rows])
    shortest, longest = int(lengths.min()), int(lengths.max())
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    state = model.initial_state(len(rows), capacity=longest + new_tokens)
    logits, state = model.extend(padded[:, :shortest], state)
    running = torch.ones(len(rows), dtype=torch.bool)
    for position in range(shortest, longest + new_tokens):
        drawn = choose(logits[:, -1], temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        reading = lengths > position
        token = torch.where(reading, padded[:, min(position, longest - 1)], drawn)
        writing = ~reading & running & (position < lengths + new_tokens)
        if writing.any() or not reading.any():
            yield torch.where(writing, drawn, NOTHING)
        if stop is not None:
            running &= reading | (token != stop)
        if (
            position + 1 == longest + new_tokens
            or not (running & (position + 1 < lengths + new_tokens)).any()
        ):
            return
        logits, state = model.extend(token[:, None], state)


def generate(
    model: Streamed, prompts: Tensor | Sequence[Sequence[int]], new_tokens: int, **options: Any
) -> list[list[int]]:
    """Write on from prompts and return what is new of each sample; arguments as in `stream`."""
    written: list[list[int]] = [[] for _ in prompts]
    for tokens in stream(model, prompts, new_tokens, **options):
        for row, token in zip(written, tokens.tolist(), strict=True):
            if token != NOTHING:
                row.append(token)
    return written
