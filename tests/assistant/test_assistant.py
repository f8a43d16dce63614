"""The assistant: text in whole characters, answers with their counts, turns that remember."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from trisense.assistant.assistant import KEPT_STATES, Answer, Assistant, TextPieces
from trisense.chat import Conversation
from trisense.engines.onnx import OnnxEngine
from trisense.engines.protocol import State
from trisense.errors import BadInput
from trisense.tokens import TextTokenizer

BYTES = tiny_models.tokenizer()


class Scripted:
    """Writes `text` byte by byte, up to `finish`, whatever it is asked."""

    name = "scripted"
    answering = base = None
    sees = hears = True

    def __init__(self, text: bytes | str, finish: str = "stop"):
        self.processor = tiny_models.processor()
        self.ids = ids_of(text.encode() if isinstance(text, str) else text)
        self.finish = finish

    def prefill(self, prompt, state=None) -> State:
        return State(prompt.ids.tolist(), (), len(prompt.ids))

    def stream(self, state: State, *, max_new_tokens: int, **_) -> Iterator[int]:
        state.finish = "length"
        for id in self.ids[:max_new_tokens]:
            state.ids.append(id)
            yield id
        state.finish = self.finish

    def logprobs(self, state, ids):
        raise NotImplementedError


def ids_of(raw: bytes) -> list[int]:
    """The ids of any bytes, also of those that are no text. GPT-2's alphabet: what cannot be printed is moved up."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(moved)}
    return [id for byte in raw if (id := BYTES.id(letters[byte])) is not None]


def ask(text: bytes | str, **options) -> tuple[list[str], Answer]:
    stream = Assistant(Scripted(text, options.pop("finish", "stop"))).stream(Conversation.ask("What?"), **options)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@given(st.text(max_size=40))
def test_any_text_comes_out_whole_and_each_piece_is_text(text: str):
    pieces = TextPieces(BYTES.decode)
    out = [pieces.add(id) for id in ids_of(text.encode())]
    assert not any(piece.endswith("\ufffd") for piece in out)
    # A text that ends in the replacement character cannot be told from one that ends inside a character.
    assert "".join(out) + pieces.end() == text.rstrip("\ufffd")


def test_a_character_of_several_tokens_comes_as_one_piece():
    pieces, answer = ask("a é 🎈.")
    assert pieces == ["a", " ", "é", " ", "🎈", "."]
    assert answer.text == "a é 🎈."
    assert answer.completion_tokens == len("a é 🎈.".encode())


def test_half_a_character_at_the_end_is_dropped_and_bytes_that_are_no_text_do_not_break_the_stream():
    assert ask("ok 🎈".encode()[:-1])[1].text == "ok "
    text = ask(b"a\xff\xfeb\xc3")[1].text
    assert text == "a\ufffd\ufffdb"


def test_a_tokenizer_that_writes_spaces_between_tokens_streams_them_too():
    """SentencePiece-like tokenizers drop the space before the first token of whatever they decode."""
    inner = Tokenizer(models.BPE({"▁a": 0, "▁cup": 1, "s": 2}, []))
    inner.decoder = decoders.Metaspace()
    pieces = TextPieces(TextTokenizer(inner).decode)
    assert [pieces.add(id) for id in (0, 1, 2, 0, 1)] == ["a", " cup", "s", " a", " cup"]
    assert pieces.end() == ""


def test_an_answer_counts_and_says_why_it_ended():
    pieces, answer = ask("red", finish="stop")
    assert "".join(pieces) == answer.text == "red"
    assert (answer.completion_tokens, answer.finish_reason) == (3, "stop")
    assert answer.prompt_tokens == len(tiny_models.processor().prompt(Conversation.ask("What?")).ids)
    assert 0 <= answer.first_token_seconds <= answer.seconds
    _, cut = ask("red cup", max_new_tokens=3, finish="length")
    assert (cut.text, cut.completion_tokens, cut.finish_reason) == ("red", 3, "length")
    _, nothing = ask("")
    assert (nothing.text, nothing.completion_tokens, nothing.finish_reason) == ("", 0, "stop")


def test_an_answer_does_not_begin_with_the_space_that_some_tokenizers_put_before_every_text():
    pieces, answer = ask("  red  cup")
    assert pieces[0] == "r"
    assert "".join(pieces) == answer.text == "red  cup"
    assert ask("   ")[1].text == ""
    assert ask(" 🎈".encode()[:-1])[1].text == ""


@pytest.mark.parametrize(
    ("stop", "expected"),
    [((), "red cup. red"), ((".",), "red cup"), (("cup. r", "d c"), "re"), (("rex", "blue"), "red cup. red")],
)
def test_stop_strings_end_an_answer_and_are_never_shown(stop, expected):
    pieces, answer = ask("red cup. red", stop=stop, finish="length")
    assert "".join(pieces) == answer.text == expected
    assert answer.finish_reason == ("length" if expected == "red cup. red" else "stop")


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_clear():
    pieces, _ = ask("abac abd", stop=("abd",))
    assert "".join(pieces) == "abac "
    assert pieces == ["ab", "ac", " "]


@pytest.fixture
def assistant() -> Assistant:
    return Assistant.from_pretrained(tiny_models.exported())


def test_an_assistant_answers_with_a_model(assistant: Assistant):
    conversation = tiny_models.conversation()
    answer = assistant.answer(conversation, max_new_tokens=8)
    assert answer.completion_tokens == 8
    assert answer.finish_reason == "length"
    assert "".join(assistant.stream(conversation, max_new_tokens=8)) == answer.text
    assert assistant.name == "spark-float32"


def test_a_follow_up_turn_reads_only_what_is_new(assistant: Assistant, monkeypatch: pytest.MonkeyPatch):
    counts = []
    run = OnnxEngine._run
    monkeypatch.setattr(
        OnnxEngine, "_run", lambda self, ids, *rest, **more: counts.append(len(ids)) or run(self, ids, *rest, **more)
    )
    first = tiny_models.conversation()
    answer = assistant.answer(first, max_new_tokens=4)
    assert counts[0] == answer.prompt_tokens
    counts.clear()
    follow_up = Conversation(messages=(*first.answered("ok").messages, *Conversation.ask("Why?").messages))
    again = assistant.answer(follow_up, max_new_tokens=1)
    assert counts[0] == again.prompt_tokens - answer.prompt_tokens
    fresh = Assistant(assistant.engine).answer(follow_up, max_new_tokens=1)
    assert fresh.text == again.text


def test_only_the_last_few_conversations_are_kept(assistant: Assistant):
    for i in range(KEPT_STATES + 3):
        assistant.answer(Conversation.ask(f"{i} is what?"), max_new_tokens=2)
    assert len(assistant._states) == KEPT_STATES
    question = Conversation.ask("tell me more")
    assistant.answer(question, max_new_tokens=2)
    assistant.answer(question, max_new_tokens=4)
    assert len([s for s in assistant._states if s.ids[: s.read][1:5] == BYTES.plain("tell")]) == 1, (
        "the longer replaces it"
    )


def test_a_closed_stream_stops_and_its_state_is_whole(assistant: Assistant):
    conversation = tiny_models.conversation()
    expected = assistant.answer(conversation, max_new_tokens=12).text
    fresh = Assistant(assistant.engine)
    stream = fresh.stream(conversation, max_new_tokens=12)
    next(stream)
    stream.close()
    assert fresh.answer(conversation, max_new_tokens=12).text == expected


def test_threads_get_their_own_answers(assistant: Assistant):
    questions = [Conversation.ask(f"What {i}?", images=[tiny_models.picture(i % 3)]) for i in range(8)]
    expected = [Assistant(assistant.engine).answer(question, max_new_tokens=6).text for question in questions]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda question: assistant.answer(question, max_new_tokens=6).text, questions))
    assert got == expected


def test_what_cannot_be_answered_is_refused_before_the_first_piece(assistant: Assistant):
    with pytest.raises(BadInput, match="does not end with a user's message"):
        assistant.stream(Conversation.ask("What?").answered("This."))
    with pytest.raises(BadInput, match="does not end with a user's message"):
        assistant.stream(Conversation(messages=()))
    with pytest.raises(BadInput, match="temperature"):
        assistant.stream(Conversation.ask("What?"), temperature=-1)
    with pytest.raises(BadInput, match="stop"):
        assistant.stream(Conversation.ask("What?"), stop=("",))
    with pytest.raises(BadInput, match="reads fewer than 512"):
        assistant.stream(Conversation.ask("What?" * 200))
    with pytest.raises(BadInput, match="missing"):
        assistant.stream(Conversation.ask("What?", images=["missing.png"]))
