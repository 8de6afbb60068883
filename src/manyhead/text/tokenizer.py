"""Byte-pair tokens: bytes, and pairs of tokens that often stand together, merged again and again.

Sennrich et al., 'Neural Machine Translation of Rare Words with Subword Units', 2016, arXiv 1508.07909,
algorithm 1, over bytes, so that every text has tokens and every sequence of tokens has bytes.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from manyhead.errors import InputError

BYTES = 256
# tokens do not reach over the border of two pieces: words, digits, signs, a line's end with its indent
PIECES = re.compile(rb" ?[A-Za-z_\x80-\xff]+|\d| ?[^\sA-Za-z0-9_\x80-\xff]+|\n[ \t]*|\s")
Pair = tuple[int, int]


class Tokenizer:
    """Text to token ids and back; ids below 256 are bytes, the others merged pairs.

    Args:
        merges: pairs of token ids in the order in which they were merged; the n-th makes id 256 + n.

    Raises:
        InputError: if a merge uses an id that does not exist yet, or a pair comes twice.
    """

    def __init__(self, merges: Sequence[Pair] = ()) -> None:
        self.spelling = [bytes([value]) for value in range(BYTES)]
        self.rank: dict[Pair, int] = {}
        for left, right in merges:
            known = len(self.spelling)
            if not (0 <= left < known and 0 <= right < known) or (left, right) in self.rank:
                raise InputError(f"merge {known - BYTES} of {left} and {right} cannot be: ids end at {known}")
            self.rank[left, right] = known
            self.spelling.append(self.spelling[left] + self.spelling[right])
        self._cache: dict[bytes, list[int]] = {}

    def __len__(self) -> int:
        return len(self.spelling)

    @classmethod
    def learn(cls, text: bytes, size: int) -> "Tokenizer":
        """Merge the most frequent pair of neighbours until there are `size` tokens, or none comes twice.

        Raises:
            InputError: if `size` is below 256.
        """
        if size < BYTES:
            raise InputError(f"a vocabulary has at least {BYTES} tokens, the bytes; got {size}")
        counted = Counter(PIECES.findall(text))
        words = [list(piece) for piece in counted]
        times = list(counted.values())
        count: Counter[Pair] = Counter()
        where: defaultdict[Pair, set[int]] = defaultdict(set)
        for n, word in enumerate(words):
            for pair in pairwise(word):
                count[pair] += times[n]
                where[pair].add(n)
        merges: list[Pair] = []
        while count and BYTES + len(merges) < size:
            # among equals the smallest pair, so that the order of pieces does not matter
            best = max(count, key=lambda pair: (count[pair], -pair[0], -pair[1]))
            if count[best] < 2:
                break
            new = BYTES + len(merges)
            merges.append(best)
            for n in where.pop(best):
                word = words[n]
                for pair in pairwise(word):
                    count[pair] -= times[n]
                    if count[pair] <= 0:
                        del count[pair]
                words[n] = word = _merged(word, best, new)
                for pair in pairwise(word):
                    count[pair] += times[n]
                    where[pair].add(n)
        return cls(merges)

    def encode(self, text: bytes) -> list[int]:
        """Token ids of a text's bytes."""
        ids: list[int] = []
        for piece in PIECES.findall(text):
            known = self._cache.get(piece)
            if known is None:
                known = self._cache[piece] = self._merge(list(piece))
            ids += known
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """Bytes of token ids."""
        return b"".join(self.spelling[token] for token in ids)

    def _merge(self, word: list[int]) -> list[int]:
        """Merge the pair that was learnt first, until none is known."""
        while len(word) > 1:
            pair = min(pairwise(word), key=lambda pair: self.rank.get(pair, len(self.spelling)))
            if pair not in self.rank:
                break
            word = _merged(word, pair, self.rank[pair])
        return word

    def to_json(self) -> str:
        """The tokeniser as JSON."""
        return json.dumps({"tokenizer": "byte pairs", "merges": list(self.rank)})

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what `to_json` wrote.

        Raises:
            InputError: if the text is something else.
        """
        try:
            held = json.loads(text)
            if held["tokenizer"] != "byte pairs":
                raise InputError(f"a tokeniser of kind {held['tokenizer']!r} is not known")
            return cls([(int(left), int(right)) for left, right in held["merges"]])
        except (ValueError, KeyError, TypeError) as fault:
            if isinstance(fault, InputError):
                raise
            raise InputError(f"no tokeniser of byte pairs: {fault}") from None


def _merged(word: list[int], pair: Pair, new: int) -> list[int]:
    out, n = [], 0
    while n < len(word):
        if n + 1 < len(word) and (word[n], word[n + 1]) == pair:
            out.append(new)
            n += 2
        else:
            out.append(word[n])
            n += 1
    return out
