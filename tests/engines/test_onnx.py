"""Exported models: the same answers as torch, turns that cost only what is new, and folders that are not whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tiny_models

from trisense.chat import Conversation
from trisense.engines import open_engine
from trisense.engines.onnx import MAX_THREADS, Manifest, OnnxEngine, threads
from trisense.errors import BadInput

ANSWER = [104, 105, 33]


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
@pytest.mark.parametrize("conversation", [tiny_models.conversation(), Conversation.ask("What?")], ids=["all", "text"])
def test_the_same_32_tokens_and_log_probabilities_as_torch(design: str, conversation: Conversation):
    answers, likely = [], []
    for folder in (tiny_models.folder(design), tiny_models.exported(design)):
        engine = open_engine(folder)
        state = engine.prefill(engine.processor.prompt(conversation))
        likely.append(engine.logprobs(state, ANSWER))
        answers.append(list(engine.stream(state, max_new_tokens=32)))
    assert len(answers[0]) == 32
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 3, "a model that repeats itself proves little"
    assert np.abs(likely[0] - likely[1]).max() < 1e-4


def test_what_is_shown_changes_the_answer():
    """The tests of equality would pass on models that look at nothing."""
    engine = OnnxEngine(tiny_models.exported())
    shown = [
        Conversation.ask("What?", images=[tiny_models.picture(0)]),
        Conversation.ask("What?", images=[tiny_models.picture(1)]),
        Conversation.ask("What?", audios=[tiny_models.sound(0)]),
        Conversation.ask("What?", audios=[tiny_models.sound(1)]),
    ]
    likely = [engine.logprobs(engine.prefill(engine.processor.prompt(c)), ANSWER) for c in shown]
    for i, one in enumerate(likely):
        for other in likely[i + 1 :]:
            assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize("kind", ["onnx", "local"])
def test_a_follow_up_turn_is_the_same_as_reading_everything(kind: str):
    engine = open_engine(tiny_models.exported() if kind == "onnx" else tiny_models.folder())
    first = tiny_models.conversation()
    state = engine.prefill(engine.processor.prompt(first))
    kept = engine.logprobs(state, ANSWER)
    list(engine.stream(state, max_new_tokens=4))
    second = Conversation(messages=(*first.answered("It is a hat").messages, *Conversation.ask("Why?").messages))
    prompt = engine.processor.prompt(second)
    scratch, reused = engine.prefill(prompt), engine.prefill(prompt, state)
    assert np.abs(engine.logprobs(scratch, ANSWER) - engine.logprobs(reused, ANSWER)).max() < 1e-4
    assert list(engine.stream(scratch, max_new_tokens=8)) == list(engine.stream(reused, max_new_tokens=8))
    # Another picture in place of the second: what was read of the first is kept, the rest is not.
    other = Conversation.ask(
        "What is it?", images=[tiny_models.picture(0), tiny_models.picture(5)], audios=[tiny_models.sound(0)]
    )
    prompt = engine.processor.prompt(other)
    scratch, reused = engine.prefill(prompt), engine.prefill(prompt, state)
    assert np.abs(engine.logprobs(scratch, ANSWER) - engine.logprobs(reused, ANSWER)).max() < 1e-4
    # The first state is still what it was.
    again = engine.prefill(engine.processor.prompt(first), state)
    assert np.abs(engine.logprobs(again, ANSWER) - kept).max() < 1e-4


def test_nothing_is_opened_or_encoded_that_is_not_needed():
    engine = OnnxEngine(tiny_models.exported())
    engine.prefill(engine.processor.prompt(Conversation.ask("What?")))
    assert set(engine._sessions) == {"decoder", "embed_tokens"}
    state = engine.prefill(engine.processor.prompt(Conversation.ask("What?", images=[tiny_models.picture(0)])))
    assert set(engine._sessions) == {"decoder", "embed_tokens", "image_encoder", "image_projector"}
    # The same picture in a new conversation: its vectors are known, so no encoder is asked.
    del engine._sessions["image_encoder"]
    engine.prefill(engine.processor.prompt(Conversation.ask("Who is that?", images=[tiny_models.picture(0)])), state)
    assert "image_encoder" not in engine._sessions


def test_sampling_repeats_with_its_seed():
    engine = OnnxEngine(tiny_models.exported())
    state = engine.prefill(engine.processor.prompt(Conversation.ask("What?")))

    def draw(seed: int) -> list[int]:
        fresh = engine.prefill(engine.processor.prompt(Conversation.ask("What?")), state)
        return list(engine.stream(fresh, max_new_tokens=16, temperature=2.0, top_p=0.95, seed=seed))

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("cores", [1, 3, 4 * MAX_THREADS])
def test_small_parts_get_one_thread_and_large_ones_a_core_each(cores: int, monkeypatch: pytest.MonkeyPatch):
    """Cores that no machine has are nobody's twins."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(100_000, 100_000 + cores)), raising=False)
    assert threads(1000) == 1
    assert threads(2**30) == min(cores, MAX_THREADS)


def test_a_device_that_onnx_parts_do_not_run_on_is_refused():
    with pytest.raises(BadInput, match="device cuda"):
        OnnxEngine(tiny_models.exported(), "cuda")


def edit(folder: Path, **changes) -> None:
    path = folder / "export.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(folder: Path) -> None:
    path = folder / "onnx" / "decoder.onnx"
    path.write_bytes(b"\x08" * path.stat().st_size)


def drop_part(folder: Path) -> None:
    parts = json.loads((folder / "export.json").read_text())["parts"]
    edit(folder, parts={name: part for name, part in parts.items() if name != "audio_encoder"})
    (folder / "onnx" / "audio_encoder.onnx").unlink()


BROKEN = {
    "a part is missing": (lambda f: (f / "onnx" / "audio_encoder.onnx").unlink(), "audio_encoder.onnx: missing"),
    "no folder of parts": (lambda f: (f / "onnx").rename(f / "parts"), "missing, but export.json names it"),
    "one file too many": (lambda f: (f / "onnx" / "b.onnx").write_text("x"), "b.onnx: not a part"),
    "a part was cut": (lambda f: cut(f / "onnx" / "decoder.onnx"), "decoder.onnx: .* bytes, but export.json says"),
    "a part is no model": (garble, "decoder.onnx: not an ONNX model"),
    "the manifest is missing": (lambda f: (f / "export.json").unlink(), "export.json: no such file"),
    "the manifest is not json": (
        lambda f: (f / "export.json").write_text("{"),
        "export.json: .*export the model again",
    ),
    "the manifest has a strange key": (lambda f: edit(f, colour="red"), "export.json: colour"),
    "the manifest is from tomorrow": (lambda f: edit(f, format=2), "export.json: format"),
    "the manifest lacks a part": (drop_part, "export.json lacks the part audio_encoder"),
    "the tokenizer is missing": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "the processor is missing": (
        lambda f: (f / "processor_config.json").unlink(),
        "processor_config.json: no such file",
    ),
    "the processor is not json": (
        lambda f: (f / "processor_config.json").write_text("x"),
        "processor_config.json: not json",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(case: str, tmp_path: Path):
    broken, expected = BROKEN[case]
    folder = copytree(tiny_models.exported(), tmp_path / "model")
    broken(folder)
    with pytest.raises(BadInput, match=expected) as refusal:
        open_engine(folder)
    assert "\n" not in str(refusal.value)


def test_a_processor_of_another_model_is_refused(tmp_path: Path):
    folder = copytree(tiny_models.exported(), tmp_path / "model")
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image"]["tokens"] = 15
    path.write_text(json.dumps(config))
    engine = OnnxEngine(folder)
    prompt = engine.processor.prompt(Conversation.ask("What?", images=[tiny_models.picture(0)]))
    with pytest.raises(BadInput, match="15 places for the image but its encoder gives 16"):
        engine.prefill(prompt)


def test_verify_reads_every_byte(tmp_path: Path):
    folder = copytree(tiny_models.exported(), tmp_path / "model")
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    path = folder / "onnx" / "image_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    Manifest.read(folder)
    with pytest.raises(BadInput, match="image_encoder"):
        manifest.verify(folder)
