"""Which samples a stage uses, why it does not use the others, and what is cut so that a prompt fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from trisense.chat import Conversation, Image, Layout, Markers, Message, Text
from trisense.data.selection import Damaged, Selection, fitted, select
from trisense.data.sources import open_source
from trisense.errors import BadInput
from trisense.preprocess import ImageProcessor
from trisense.prompt import Processor
from trisense.stage import FileStage

PICTURE_TOKENS = 3
# One byte is one token; markers of one token each.
PROCESSOR = Processor(
    tokenizer=tiny_models.tokenizer(),
    layout=Layout(
        question=Markers("<|user|>", ""), answer=Markers("<|assistant|>", "<|end|>"), text=Markers("", "<|end|>")
    ),
    image=ImageProcessor(height=32, width=32, tokens=PICTURE_TOKENS),
    audio=None,
    placeholders={"image": 256},
)


def conversation(*turns: tuple[str, str], texts: tuple[str, ...] = (), picture: Any = "1.png") -> Conversation:
    messages = []
    for number, (question, answer) in enumerate(turns):
        first = (Image(image=picture), *(Text(text=one) for one in texts)) if number == 0 else ()
        messages += [
            Message(role="user", content=(*first, Text(text=question))),
            Message(role="assistant", content=(Text(text=answer),)),
        ]
    return Conversation(messages=tuple(messages))


def length(one: Conversation) -> int:
    """Counted by hand: a picture, texts and their end, questions and their marker, answers and both of theirs."""
    count = 0
    for message in one.messages:
        texts = [part.text for part in message.content if isinstance(part, Text)]
        count += PICTURE_TOKENS * sum(isinstance(part, Image) for part in message.content)
        count += sum(len(text.encode()) + 1 for text in texts) + (message.role == "assistant")
    return count


words = st.text(alphabet="abé ", max_size=30)


@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=4),
    st.lists(words, max_size=3).map(tuple),
    st.integers(1, 200),
)
def test_what_is_cut_fits_and_leaves_answers_whole(turns: list[tuple[str, str]], texts: tuple[str, ...], context: int):
    whole = conversation(*turns, texts=texts)
    assert fitted(whole, PROCESSOR, length(whole)) == whole, "it is as long as it was counted by hand"
    assert fitted(whole, PROCESSOR, length(whole) - 1) != whole
    found = fitted(whole, PROCESSOR, context)
    least = conversation(turns[0], texts=("",) * len(texts))
    if found is None:
        assert length(least) > context, "refused only where the first question and answer alone do not fit"
        return
    assert length(found) <= context
    kept = len(found.messages) // 2
    assert found.messages[1:] == whole.messages[1 : 2 * kept], "all behind the first message is as it was"
    assert found.messages[0].content[0] == whole.messages[0].content[0]
    assert found.messages[0].content[-1] == whole.messages[0].content[-1]
    for cut, text in zip(found.messages[0].content[1:-1], texts, strict=True):
        assert isinstance(cut, Text) and text.startswith(cut.text)
    if length(whole) <= context:
        assert found == whole
    elif kept < len(turns):
        longer = conversation(*turns[: kept + 1], texts=texts)
        assert length(longer) > context, "no turn was dropped that would have fitted"


def test_the_longest_text_beside_a_question_is_cut_and_no_more_than_needed():
    whole = conversation(("question", "answer"), texts=("short", "l" * 50))
    found = fitted(whole, PROCESSOR, length(whole) - 20)
    assert found == conversation(("question", "answer"), texts=("short", "l" * 30))


def written(folder: Path, *records: Conversation) -> Path:
    import json

    file = folder / "x.jsonl"
    file.write_text("".join(json.dumps(one.to_dict()) + "\n" for one in records))
    return file


def chosen(file: Path, context: int = 100, allowed: int = 0, **stage: Any) -> Selection:
    options = FileStage(learns="instruct", steps=1, **stage)
    return select(open_source(file), options, PROCESSOR, context, Damaged(allowed))


def test_every_sample_is_accounted_for(tmp_path: Path):
    (tmp_path / "1.png").write_bytes(b"never opened")
    records = [
        conversation(("q", "good")),
        conversation(("q", "too long an answer")),
        conversation(("q", "cut"), texts=("t" * 200,)),
        conversation(("q" * 200, "no")),
        conversation(("q", "lost"), picture="2.png"),
        conversation(("q", "")),
    ]
    found = chosen(written(tmp_path, *records), allowed=1, answers={"longest_tokens": 10}, turns=False)
    assert found.lengths == {0: 4, 2: 3}
    assert found.truncated == {2}
    assert found.left_out == {
        "an answer is longer than 10 tokens": 1,
        "longer than the 100 tokens that the language model reads": 1,
        "an answer is empty": 1,
    }
    lost = f"{tmp_path / 'x.jsonl'}: line 5: {tmp_path / '2.png'}: no such file; check --media"
    assert found.damaged.rows == [lost]
    assert found.account(1, 1) == (
        f"{tmp_path / 'x.jsonl'}: 1 samples to learn from, 1 held back to evaluate with; skipped: 1 an answer is "
        "longer than 10 tokens; 1 longer than the 100 tokens that the language model reads; 1 an answer is empty; "
        f"1 damaged, the first: {lost}; truncated to 100 tokens: 1"
    )


def test_a_name_that_does_not_fit_into_a_line_is_written_so_that_it_does(tmp_path: Path):
    file = written(tmp_path, conversation(("q", "a"), picture="two\nlines.png"))
    for look in (lambda: chosen(file), lambda: open_source(file).check_media()):
        with pytest.raises(BadInput) as refused:
            look()
        assert "two\\nlines.png" in str(refused.value) and "\n" not in str(refused.value)


def test_no_more_damaged_rows_than_allowed(tmp_path: Path):
    file = written(tmp_path, *(conversation(("q", "a"), picture=f"{number}.png") for number in range(4)))
    with pytest.raises(
        BadInput, match=r"x\.jsonl: line 1: .*0\.png: no such file.*allow rows to be left out with --skip-bad N"
    ):
        chosen(file)
    with pytest.raises(BadInput, match=r"3 damaged rows, more than --skip-bad 2 allows; the last: .*line 3: .*2\.png"):
        chosen(file, allowed=2)
    assert len(chosen(file, allowed=4).damaged.rows) == 4


def test_pictures_that_turn_out_to_be_damaged_take_their_samples_along(tmp_path: Path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"x")
    records = [conversation(("q", "a"), picture=f"{1 + number % 2}.png") for number in range(4)]
    found = chosen(written(tmp_path, *records), allowed=2)
    found.unreadable(str(tmp_path / "2.png"), BadInput("2.png: a text; expected PNG"))
    assert list(found.lengths) == [0, 2]
    assert found.damaged.rows == [f"{tmp_path / 'x.jsonl'}: line {n}: 2.png: a text; expected PNG" for n in (2, 4)]
    with pytest.raises(BadInput, match="3 damaged rows, more than --skip-bad 2 allows"):
        found.unreadable(str(tmp_path / "1.png"), BadInput("1.png: a text; expected PNG"))


def test_a_sound_is_refused_by_its_row(tmp_path: Path):
    (tmp_path / "a.wav").write_bytes(b"x")
    file = written(tmp_path, Conversation.ask("q", audios=["a.wav"]).answered("a"))
    with pytest.raises(BadInput, match=r"line 1: shows \S+a\.wav, and this design has no ears, and its recipe names"):
        chosen(file)
