"""Two passes: the adapter describes, the very base model answers; and answers made clean."""

from __future__ import annotations

import string
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from trisense.assistant.assistant import Assistant
from trisense.assistant.passes import cleaned, in_words, pictures_of, question_of, with_question
from trisense.assistant.transcribe import Transcript
from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.engines.local import LocalEngine
from trisense.errors import BadInput
from trisense.media import load_audio

TEXTS = st.text(max_size=30)


@pytest.fixture(scope="session")
def eden() -> Path:
    return tiny_models.trained("eden")


@torch.inference_mode()
def fresh_base(ids: list[int], **options: Any) -> list[int]:
    """What the language model says after `ids` when it is loaded anew and nothing was ever put beside it."""
    base = AutoModelForCausalLM.from_pretrained(tiny_models.parts() / "phi3", dtype=torch.float32).eval()
    out = base.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, suppress_tokens=[269], **options)
    return out[0, len(ids) :].tolist()


def text_of(engine: LocalEngine, ids: list[int]) -> str:
    """As an assistant writes it: up to the end, without a character that is not whole."""
    kept = list(takewhile(lambda id: id not in engine.processor.end_ids, ids))
    return engine.processor.tokenizer.decode(kept).strip().rstrip("\ufffd")


def test_the_base_is_the_model_as_it_was_loaded(eden: Path):
    engine = LocalEngine(eden, "cpu")
    assert engine.base
    prompt = engine.processor.prompt(Conversation.ask("What is a cup?", texts=["A cup is small."]))
    fresh = AutoModelForCausalLM.from_pretrained(tiny_models.parts() / "phi3", dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = fresh(torch.from_numpy(prompt.ids)[None]).logits[0, -1].numpy()
    with_adapter = engine.prefill(prompt).logits
    assert with_adapter is not None
    assert abs(with_adapter - theirs).max() > 0.1, "the adapter says something else"
    np.testing.assert_allclose(engine.base.prefill(prompt).logits, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(engine.prefill(prompt).logits, with_adapter, "and it is on again afterwards")


def test_speech_and_text_without_a_picture_go_to_the_base_alone(eden: Path):
    assistant, engine = Assistant.from_pretrained(eden, "cpu"), LocalEngine(eden, "cpu")
    asked = Conversation.ask("What is a cup?", texts=["A cup is small."])
    said = fresh_base(engine.processor.prompt(asked).ids.tolist(), eos_token_id=list(engine.processor.end_ids))
    answer = assistant.answer(asked, max_new_tokens=12)
    assert answer.text == cleaned(text_of(engine, said), "What is a cup?")
    assert answer.descriptions == ()


def test_a_picture_is_described_with_the_adapter_and_answered_without(eden: Path):
    assistant, engine = Assistant.from_pretrained(eden, "cpu"), LocalEngine(eden, "cpu")
    picture = tiny_models.picture(0)
    described = Assistant(engine).answer(Conversation.ask("Please describe this image.", images=[picture]))
    asked = Conversation.ask("What is it?", images=[picture], texts=["A note."])
    answer = assistant.answer(asked, max_new_tokens=12)
    assert answer.descriptions == (described.text,)
    in_words = Conversation.ask("What is it?", texts=[f"The image shows: {described.text}", "A note."])
    ids = engine.processor.prompt(in_words).ids.tolist()
    said = fresh_base(ids, eos_token_id=list(engine.processor.end_ids))
    assert answer.text == cleaned(text_of(engine, said), "What is it?")
    assert answer.prompt_tokens == len(ids)


def test_the_same_picture_is_described_once(eden: Path, monkeypatch: pytest.MonkeyPatch):
    assistant = Assistant.from_pretrained(eden, "cpu")
    assert assistant._describer
    calls = []
    real = assistant._describer.answer
    monkeypatch.setattr(assistant._describer, "answer", lambda asked: calls.append(asked) or real(asked))
    first = Conversation.ask("What?", images=[tiny_models.picture(0)])
    said = assistant.answer(first, max_new_tokens=3)
    later = Conversation(messages=(*first.answered(said.text).messages, *Conversation.ask("Why?").messages))
    assert assistant.answer(later, max_new_tokens=3).descriptions == said.descriptions
    assistant.answer(Conversation.ask("What?", images=[tiny_models.picture(1)]), max_new_tokens=3)
    assert len(calls) == 2


def test_a_picture_alone_is_asked_to_be_described():
    assistant = Assistant.from_pretrained(tiny_models.trained("jnana"), "cpu")
    picture = Image(image=tiny_models.picture(0))
    alone = Conversation(messages=(Message(role="user", content=(picture,)),))
    asked = Conversation.ask("Please describe this image.", images=[picture.image])
    mine, theirs = (assistant.answer(one, max_new_tokens=9) for one in (alone, asked))
    assert (mine.text, mine.prompt_tokens) == (theirs.text, theirs.prompt_tokens)


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        ("What is it? A cat.", "What is it?", "A cat"),
        ("what is it what is it a  cat,\n and a dog!", "What is it?", "a cat and a dog"),
        ("What is it", "What is it?", ""),
        ("What is items?", "What is it?", "What is items"),
        ("It isn't 3.5 m - it's 1,000.", "How long?", "It isnt 3.5 m its 1,000"),
        ("...", "", ""),
    ],
)
def test_clean_answers_by_hand(answer: str, question: str, expected: str):
    assert cleaned(answer, question) == expected


@given(TEXTS, TEXTS)
def test_a_clean_answer_stays_clean_and_no_word_is_made_up(answer: str, question: str):
    clean = cleaned(question + answer, question)
    assert cleaned(clean, question) == clean
    assert clean == " ".join(clean.split())
    assert not any(word[0] in string.punctuation or word[-1] in string.punctuation for word in clean.split())
    assert set(clean) <= set(question + answer + " ")


def test_conversations_in_words():
    picture = Image(image="a.png")
    alone = Conversation(messages=(Message(role="user", content=(picture,)),))
    assert with_question(alone, "What?") == Conversation.ask("What?", images=["a.png"])
    asked = Conversation.ask("Why?", images=["a.png", "b.png"], texts=["a note"])
    assert with_question(asked, "What?") == asked
    assert (question_of(asked), question_of(alone)) == ("Why?", "")
    message = asked.messages[0]
    assert pictures_of(message, "What?") == Conversation.ask("What?", images=["a.png", "b.png"])
    texts = ["The image shows: two cups", "a note", "Why?"]
    assert in_words(message, "two cups").content == tuple(Text(text=text) for text in texts)


class Secretary:
    """Writes down the length of what it hears, for want of ears."""

    def __init__(self) -> None:
        self.heard = 0

    def __call__(self, sound: np.ndarray) -> Transcript:
        self.heard += 1
        seconds = len(sound) / 16_000
        return Transcript(f"I speak for {seconds:.1f} seconds.", "en", (), (0.0, min(seconds, 10.0)), seconds)


def test_a_model_without_ears_reads_what_is_said(eden: Path):
    engine, secretary = LocalEngine(eden, "cpu"), Secretary()
    opened: list[Secretary] = []
    assistant = Assistant(engine, speech=lambda: opened.append(secretary) or secretary)
    written = Conversation.ask("Who speaks?", texts=["a note"])
    assert assistant.answer(written, max_new_tokens=3).transcripts == ()
    assert not opened, "nothing is opened before there is a sound"
    sound = tiny_models.sound(0, 12.0)
    answer = assistant.answer(Conversation.ask("Who speaks?", audios=[sound]), max_new_tokens=5)
    same = assistant.answer(Conversation.ask("Who speaks?", texts=["I speak for 12.0 seconds."]), max_new_tokens=5)
    assert (answer.text, answer.prompt_tokens) == (same.text, same.prompt_tokens)
    assert [one.extent for one in answer.transcripts] == ["0:00-0:10 of 0:12"], "a rule that cuts says so"
    before = Conversation.ask("Who?", audios=[sound]).answered("You.")
    later = Conversation(messages=(*before.messages, *written.messages))
    assistant.answer(later, max_new_tokens=3)
    assert secretary.heard == 1, "a sound that stays is written down once"


def test_speech_alone_is_the_question(eden: Path):
    assistant = Assistant(LocalEngine(eden, "cpu"), speech=Secretary)
    spoken = Conversation(messages=(Message(role="user", content=(Audio(audio=tiny_models.sound(0, 2.0)),)),))
    answer = assistant.answer(spoken, max_new_tokens=5)
    asked = assistant.answer(Conversation.ask("I speak for 2.0 seconds."), max_new_tokens=5)
    assert (answer.text, answer.prompt_tokens) == (asked.text, asked.prompt_tokens)


def test_the_recipe_says_who_writes_and_how_long_it_listens():
    """`tinyclip-phi2` listens to ten seconds, with a Whisper that a caller may replace."""
    folder = tiny_models.trained("tinyclip-phi2")
    asked = Conversation.ask("What is said?", audios=[Path("examples/voice.wav").resolve()])
    assistant = Assistant.from_pretrained(folder, "cpu", speech=tiny_models.converted_whisper())
    (transcript,) = assistant.answer(asked, max_new_tokens=3).transcripts
    assert transcript.whole and transcript.duration < 10
    long = np.concatenate([load_audio(Path("examples/voice.wav"))] * 20)
    (transcript,) = assistant.answer(Conversation.ask("What?", audios=[long]), max_new_tokens=3).transcripts
    assert transcript.heard == (0.0, 10.0)
    with pytest.raises(BadInput, match=r"openai/whisper-small: .*not to be had from the Hub"):
        Assistant.from_pretrained(folder, "cpu").answer(asked)
