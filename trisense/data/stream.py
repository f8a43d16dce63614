"""A packed stream of tokens on disk, and the windows of it that a language model learns from.

Documents follow one another, each closed by the end token, and the stream is cut into windows of one length, so no
place is wasted on padding; a window may hold the end of one document and the beginning of the next, and attention
crosses from one to the other, as in GPT-2 and its descendants.

Letters: N windows, W tokens of a window.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.tokens import TextTokenizer

# A document is tokenised in pieces of about so many characters, or a book of gigabytes would need ten times its memory.
PIECE = 1 << 18
# Before a space between two words byte-level tokenizers cut anyway, and a piece that begins with one gets no other.
BREAK = re.compile(r"(?<=\S) (?=\S)")


def pieces(document: str, size: int = PIECE) -> Iterator[str]:
    """A document cut between words, at the first place after every `size` characters."""
    start = 0
    while (found := BREAK.search(document, start + size)) is not None:
        yield document[start : found.start()]
        start = found.start()
    yield document[start:]


@dataclass(frozen=True)
class TokenStream:
    """tokens: uint16 or uint32, mapped into memory. documents, bytes: how many, and of how many bytes of UTF-8, it was
    made."""

    tokens: np.ndarray
    documents: int
    bytes: int

    @classmethod
    def open(
        cls, folder: Path, texts: Callable[[], Iterable[str]], tokenizer: TextTokenizer, end: int, what: Any
    ) -> TokenStream:
        """The stream in `folder`, written from `texts()` where it does not hold that of `what` yet.

        end: the token that closes a document; nothing written can become it. The file is written aside and renamed, so
        one that was stopped is made again.
        """
        file, card = folder / "tokens.bin", folder / "tokens.json"
        what = json.loads(json.dumps({"what": what, "end": end, "vocabulary": tokenizer.size}))
        known = json.loads(card.read_text(encoding="utf-8")) if card.exists() else {}
        if known.get("made_of") != what or not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            card.unlink(missing_ok=True)
            known = {"made_of": what, **_write(file, texts(), tokenizer, end)}
            aside = folder / f"tokens.{os.getpid()}.part"
            aside.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            os.replace(aside, card)
        tokens = np.memmap(file, dtype=known["dtype"], mode="r")
        if len(tokens) != known["tokens"]:
            raise BadInput(f"{file}: {len(tokens)} tokens, but {card.name} says {known['tokens']}; remove both")
        return cls(tokens, known["documents"], known["bytes"])


def _write(file: Path, texts: Iterable[str], tokenizer: TextTokenizer, end: int) -> dict[str, Any]:
    dtype = np.uint16 if tokenizer.size <= 1 << 16 else np.uint32
    aside = file.with_name(f"tokens.{os.getpid()}.bin.part")
    tokens = documents = size = 0
    with aside.open("wb") as out, tqdm(desc="tokens", unit="B", unit_scale=True, mininterval=5) as bar:
        for text in texts:
            documents += 1
            for piece in pieces(text):
                ids = np.array(tokenizer.plain(piece), dtype)
                out.write(ids.tobytes())
                tokens += len(ids)
                size += (long := len(piece.encode("utf-8")))
                bar.update(long)
            out.write(np.array([end], dtype).tobytes())
            tokens += 1
    os.replace(aside, file)
    return {"dtype": np.dtype(dtype).name, "tokens": tokens, "documents": documents, "bytes": size}


@dataclass(frozen=True)
class Windows:
    """The stream cut into windows of `size` tokens to read and `size` to say, which is to say the same one later.

    The first `learned` are to learn from, the `held` after them, the end of the stream, to evaluate with.
    """

    stream: TokenStream
    size: int
    learned: int
    held: int

    @classmethod
    def cut(cls, stream: TokenStream, size: int, held_back: float) -> Windows:
        """held_back: share of the windows, one at least. Raises BadInput for a stream of fewer than two windows."""
        count = (len(stream.tokens) - 1) // size
        if count < 2:
            raise BadInput(
                f"the text has {len(stream.tokens)} tokens, {max(count, 0)} windows of {size}; expected two at least: "
                "give more text or a smaller block_size"
            )
        held = min(count - 1, max(1, round(held_back * count)))
        return cls(stream, size, count - held, held)

    def batch(self, numbers: Iterable[int]) -> Batch:
        """Windows by their numbers: input_ids and targets, both int64 [N, W]. What is held back is never a target."""
        rows = [self.stream.tokens[n * self.size : (n + 1) * self.size + 1] for n in numbers]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        inputs = {"input_ids": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
        return Batch(inputs, tokens.shape[0] * self.size)

    def batches(self, size: int, seed: int) -> Callable[[int], Batch]:
        """Batches of `size` windows to learn from: batch n of no end. Every window comes once before any comes again,
        each time in an order drawn anew. A batch depends on its number alone."""

        @lru_cache(maxsize=2)
        def order(turn: int) -> np.ndarray:
            return np.random.default_rng((seed, turn)).permutation(self.learned)

        def batch_at(number: int) -> Batch:
            places = (divmod(place, self.learned) for place in range(number * size, (number + 1) * size))
            return self.batch(int(order(turn)[place]) for turn, place in places)

        return batch_at

    def held_batches(self, size: int, most: int) -> Iterator[Batch]:
        """The first `most` of the windows that are held back, in batches of `size`."""
        numbers = range(self.learned, self.learned + min(self.held, most))
        yield from (self.batch(numbers[start : start + size]) for start in range(0, len(numbers), size))
