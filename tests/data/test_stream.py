"""A packed stream: nothing lost, every window once an epoch, nothing held back learned, and made once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from trisense.data.stream import TokenStream, Windows, pieces
from trisense.errors import BadInput
from trisense.model.build import train_tokenizer
from trisense.recipe import Design
from trisense.tokens import TextTokenizer

TEXTS = ["The red cup.", "Über <|end|> alles\n\nneue Zeile", "x" * 70]
END = 260


def stream(folder: Path, texts: list[str] = TEXTS, what: object = "a") -> TokenStream:
    return TokenStream.open(folder, lambda: texts, tiny_models.tokenizer(), END, what)


def of(*tokens: int) -> TokenStream:
    return TokenStream(np.array(tokens, np.uint16), 1, 1)


def test_the_stream_holds_every_document_closed_by_the_end_token(tmp_path: Path) -> None:
    made, tokenizer = stream(tmp_path), tiny_models.tokenizer()
    assert made.tokens.dtype == np.uint16
    assert isinstance(made.tokens, np.memmap)
    ends = np.flatnonzero(made.tokens == END)
    parts = np.split(made.tokens, ends + 1)[:-1]
    assert [tokenizer.decode(part[:-1]) for part in parts] == TEXTS, "what is written is never the end token"
    assert (made.documents, made.bytes) == (3, sum(len(text.encode()) for text in TEXTS))


def test_it_is_written_once_and_anew_for_other_text(tmp_path: Path) -> None:
    stream(tmp_path)

    def never() -> Iterator[str]:
        raise AssertionError("read again")

    again = TokenStream.open(tmp_path, never, tiny_models.tokenizer(), END, "a")
    assert np.array_equal(again.tokens, stream(tmp_path).tokens)
    assert len(stream(tmp_path, ["other"], "b").tokens) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.bin", "tokens.json"]


def test_one_that_was_stopped_is_made_again_and_one_cut_short_is_refused(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "first"
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        TokenStream.open(tmp_path, broken, tiny_models.tokenizer(), END, "a")
    assert not (tmp_path / "tokens.json").exists()
    whole = stream(tmp_path)
    file = tmp_path / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(BadInput, match=rf"{len(whole.tokens) - 1} tokens, but tokens\.json says {len(whole.tokens)}"):
        stream(tmp_path)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    inner = json.loads(tiny_models.tokenizer().to_json())
    inner["model"]["vocab"] |= {f"w{number}": 300 + number for number in range(1 << 16)}
    made = TokenStream.open(tmp_path, lambda: ["abc"], TextTokenizer.from_file(_saved(tmp_path, inner)), END, "a")
    assert made.tokens.dtype == np.uint32
    assert len(made.tokens) == 4


def _saved(folder: Path, tokenizer: object) -> Path:
    path = folder / "large.json"
    path.write_text(json.dumps(tokenizer))
    return path


TRAINED = train_tokenizer(
    ["the red cup is here. and there, too;  it is", "für alle\n\nfälle"] * 9,
    Design.model_validate({"text": {}, "vocabulary": 300, "layout": {"answer": ["", "<|end|>"]}}),
)


@given(st.text("ab ü\n.,'7 ", max_size=60), st.integers(1, 9))
def test_a_document_in_pieces_has_the_tokens_of_the_whole(text: str, size: int) -> None:
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    assert [id for piece in cut for id in TRAINED.plain(piece)] == TRAINED.plain(text)


def test_windows_cover_the_stream_and_targets_are_one_later() -> None:
    windows = Windows.cut(of(*range(43)), 4, 0.2)
    assert (windows.learned, windows.held) == (8, 2)
    batch = windows.batch(range(windows.learned))
    assert batch.items == 32
    assert np.array_equal(batch.inputs["targets"], batch.inputs["input_ids"] + 1)
    learned = set(batch.inputs["targets"].flatten().tolist())
    (held,) = windows.held_batches(5, 9)
    said = set(held.inputs["targets"].flatten().tolist())
    assert learned == set(range(1, 33)) and said == set(range(33, 41)), "no target in both, none left out between"
    assert [b.items for b in windows.held_batches(1, 1)] == [4]


def test_every_window_comes_once_before_any_comes_again_by_number_alone() -> None:
    windows = Windows.cut(of(*range(4 * 13 + 1)), 4, 0.1)
    batch_at = windows.batches(5, seed=7)
    firsts = [int(row) for number in range(12) for row in batch_at(number).inputs["input_ids"][:, 0] // 4]
    epochs = [firsts[start : start + 12] for start in range(0, 60, 12)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != sorted(epochs[1])
    again = windows.batches(5, seed=7)
    for number in (9, 0, 11):
        assert np.array_equal(again(number).inputs["input_ids"], batch_at(number).inputs["input_ids"])
    assert not np.array_equal(windows.batches(5, seed=8)(0).inputs["input_ids"], batch_at(0).inputs["input_ids"])


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(BadInput, match="the text has 8 tokens, 1 windows of 4; expected two at least"):
        Windows.cut(of(*range(8)), 4, 0.1)
    with pytest.raises(BadInput, match="0 windows"):
        Windows.cut(of(), 4, 0.1)
