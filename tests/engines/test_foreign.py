"""Other people's models behind our Assistant: the tokens of their own generate(), and what is refused."""

from __future__ import annotations

import base64
import io
import json
import threading
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import tiny_foreign
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    LlamaForCausalLM,
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from trisense.assistant.assistant import Assistant, TextPieces
from trisense.chat import Conversation, Message, Text
from trisense.cli import main
from trisense.engines import open_engine
from trisense.engines.foreign import ForeignEngine, load_config, load_processor
from trisense.errors import BadInput

SEEING = pytest.mark.parametrize("name", tiny_foreign.SEEING)
pytestmark = pytest.mark.usefixtures("no_words_for_numbers")
PICTURES = [Image.fromarray(tiny_models.picture(seed)) for seed in range(2)]


@cache
def engine(name: str) -> ForeignEngine:
    return ForeignEngine(tiny_foreign.folder(name))


def said(text: str, role: str = "user", pictures: int = 0) -> dict[str, Any]:
    """A message as transformers documents it."""
    shown = [{"type": "image", "image": picture} for picture in PICTURES[:pictures]]
    return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def reference(name: str, messages: list[dict[str, Any]], count: int) -> list[int]:
    """What transformers alone makes of these messages. The end token is left out."""
    folder = tiny_foreign.folder(name)
    if name in ("llava", "qwen2_audio"):
        processor: Any = AutoProcessor.from_pretrained(folder)
    else:  # AutoProcessor wants torchvision for videos
        processor = load_processor(folder, load_config(folder))
    kind = Qwen2_5OmniThinkerForConditionalGeneration if name == "qwen2_5_omni" else AutoModelForMultimodalLM
    model = kind.from_pretrained(folder, dtype=torch.float32)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids[:-1] if ids[-1] == tiny_foreign.ID["<|im_end|>"] else ids


def written(engine: ForeignEngine, conversation: Conversation, count: int = 16, **options: Any) -> list[int]:
    state = engine.prefill(engine.processor.prompt(conversation))
    return list(engine.stream(state, max_new_tokens=count, **options))


def text_of(engine: ForeignEngine, ids: list[int]) -> str:
    pieces = TextPieces(engine.processor.tokenizer.decode)
    return ("".join(map(pieces.add, ids)) + pieces.end()).lstrip()


@SEEING
def test_the_same_tokens_as_generate_about_two_pictures(name: str):
    conversation = Conversation.ask("What is it?", images=PICTURES)
    assert written(engine(name), conversation) == reference(name, [said("What is it?", pictures=2)], 16)


@SEEING
def test_the_same_tokens_as_generate_in_a_second_turn(name: str):
    asked = Conversation.ask("What is it?", images=PICTURES[:1]).answered("A cup.")
    conversation = Conversation(messages=(*asked.messages, *Conversation.ask("And its color?").messages))
    messages = [said("What is it?", pictures=1), said("A cup.", "assistant"), said("And its color?")]
    assert written(engine(name), conversation) == reference(name, messages, 16)


@SEEING
def test_the_same_tokens_as_generate_about_text_alone(name: str):
    system = Message(role="system", content=(Text(text="Be brief."),))
    asked = Conversation.ask("Who has it?", texts=["Anna has the red cup.", "Ben has the fish."])
    conversation = Conversation(messages=(system, *asked.messages))
    question = "Anna has the red cup.\n\nBen has the fish.\n\nWho has it?"
    assert written(engine(name), conversation) == reference(name, [said("Be brief.", "system"), said(question)], 16)


def test_pictures_change_what_is_written():
    qwen = engine("qwen2_vl")
    first, second = (written(qwen, Conversation.ask("What?", images=[picture])) for picture in PICTURES)
    assert first != second


def test_a_model_with_ears_hears():
    hearing = engine("qwen2_audio")
    assert (hearing.sees, hearing.hears) == (False, True)
    sounds = [tiny_models.sound(0), tiny_models.sound(1, 0.4)]
    heard = [{"type": "audio", "audio": sound} for sound in sounds]
    messages = [{"role": "user", "content": [*heard, {"type": "text", "text": "Who is it?"}]}]
    ids = written(hearing, Conversation.ask("Who is it?", audios=sounds))
    assert ids == reference("qwen2_audio", messages, 16)
    assert ids != written(hearing, Conversation.ask("Who is it?", audios=sounds[::-1]))


def test_a_model_with_eyes_and_ears():
    """An any-to-any model: the part of it that thinks writes the answers."""
    omni, sound = engine("qwen2_5_omni"), tiny_models.sound(0)
    assert (omni.sees, omni.hears) == (True, True)
    assert type(omni.model) is Qwen2_5OmniThinkerForConditionalGeneration
    shown = [{"type": "image", "image": PICTURES[0]}, {"type": "audio", "audio": sound}]
    messages = [{"role": "user", "content": [*shown, {"type": "text", "text": "What is it?"}]}]
    conversation = Conversation.ask("What is it?", images=PICTURES[:1], audios=[sound])
    assert written(omni, conversation) == reference("qwen2_5_omni", messages, 16)


def test_a_model_that_only_reads():
    reading = engine("llama")
    assert (reading.sees, reading.hears) == (False, False)
    model = LlamaForCausalLM.from_pretrained(tiny_foreign.folder("llama"), dtype=torch.float32)
    tokenizer = tiny_foreign.tokenizer(tiny_foreign.CHATML)
    messages = [{"role": "user", "content": "Anna has the red cup.\n\nWho has it?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert written(reading, Conversation.ask("Who has it?", texts=["Anna has the red cup."]), 8) == out.tolist()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_log_probabilities_are_those_of_one_pass_over_everything(name: str):
    foreign, answer = engine(name), list(b"A cup.")
    prompt = foreign.processor.prompt(Conversation.ask("What is it?", images=PICTURES))
    state = foreign.prefill(prompt)
    longer = dict(prompt.inputs)
    for key, fill in (("input_ids", answer), ("attention_mask", [1] * 6), ("mm_token_type_ids", [0] * 6)):
        if key in longer:
            longer[key] = torch.cat([longer[key], torch.tensor([fill])], dim=1)
    with torch.no_grad():
        rows = foreign.model(**longer).logits[0, -7:-1].log_softmax(-1)
    expected = rows[torch.arange(6), answer].numpy()
    assert np.allclose(foreign.logprobs(state, answer), expected, atol=1e-4)
    assert foreign.logprobs(state, []).shape == (0,)
    end = [*answer[:2], *foreign.end_ids, *answer[2:]]
    assert np.allclose(foreign.logprobs(state, end)[:2], expected[:2], atol=1e-4), "an end inside ends nothing"
    assert state.ids == prompt.ids.tolist()


def test_an_answer_goes_on_where_it_stopped():
    foreign = engine("qwen2_vl")
    prompt = foreign.processor.prompt(Conversation.ask("What is it?", images=PICTURES[:1]))
    whole = list(foreign.stream(foreign.prefill(prompt), max_new_tokens=8))
    state = foreign.prefill(prompt)
    halves = [list(foreign.stream(state, max_new_tokens=4)) for _ in range(2)]
    assert halves[0] + halves[1] == whole and state.ids == [*prompt.ids.tolist(), *whole]


def test_a_seed_repeats_an_answer_and_a_small_nucleus_is_greedy():
    foreign, conversation = engine("llava"), Conversation.ask("What is it?", images=PICTURES[:1])
    draws = [written(foreign, conversation, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert written(foreign, conversation, temperature=1.0, top_p=1e-6, seed=3) == written(foreign, conversation)


def test_an_answer_ends_at_any_end_token_of_its_model(tmp_path: Path):
    conversation = Conversation.ask("What is it?", images=PICTURES[:1])
    whole = written(engine("llava"), conversation)
    folder = copytree(tiny_foreign.folder("llava"), tmp_path / "model")
    last = next(i for i, id in enumerate(whole) if i > 1 and id not in whole[:i])
    unused = next(id for id in range(256) if id not in whole)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [unused, whole[last]]}))
    ending = ForeignEngine(folder)
    state = ending.prefill(ending.processor.prompt(conversation))
    assert list(ending.stream(state, max_new_tokens=50)) == whole[:last]
    assert state.finish == "stop"
    answer = Assistant(ending).answer(conversation)
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", last)


@SEEING
def test_an_assistant_answers_in_pieces(name: str):
    foreign = engine(name)
    assistant, conversation = Assistant(foreign), Conversation.ask("What is it?", images=PICTURES[:1])
    answer = assistant.answer(conversation, max_new_tokens=16)
    assert answer.text == text_of(foreign, reference(name, [said("What is it?", pictures=1)], 16))
    assert "".join(assistant.stream(conversation, max_new_tokens=16)) == answer.text
    assert assistant.name == name


def test_a_closed_stream_stops_the_model():
    foreign, steps = ForeignEngine(tiny_foreign.folder("llava")), []
    foreign.model.generation_config.eos_token_id = None  # it would go on to the end
    hook = foreign.model.register_forward_hook(lambda *_: steps.append(threading.current_thread().name))
    stream = Assistant(foreign).stream(Conversation.ask("What is it?"), max_new_tokens=900)
    next(stream)
    stream.close()
    hook.remove()
    assert 0 < len(steps) < 900
    assert not set(steps) & {thread.name for thread in threading.enumerate()}


def test_a_conversation_that_leaves_no_room_is_refused():
    with pytest.raises(BadInput, match="reads fewer than 1024"):
        Assistant(engine("llama")).stream(Conversation.ask("What?" * 300))


def test_the_command_line_asks_a_model_of_transformers(samples: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["ask", "--model", str(tiny_foreign.folder("llava")), "--image", str(samples / "picture.png")]
    assert main([*arguments, "--max-tokens", "8", "What is it?"]) == 0
    conversation = Conversation.ask("What is it?", images=[samples / "picture.png"])
    answer = Assistant(engine("llava")).answer(conversation, max_new_tokens=8)
    assert capsys.readouterr().out == answer.text + "\n"
    assert main([*arguments, "--audio", str(samples / "voice.wav"), "What is it?"]) == 2
    assert capsys.readouterr().err.startswith("trisense: audio: this model has no ears")


def test_the_api_serves_a_model_of_transformers():
    from fastapi.testclient import TestClient

    from trisense.serve.api import create_app

    assistant = Assistant(engine("smolvlm"))
    file = io.BytesIO()
    PICTURES[0].save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    with TestClient(create_app(assistant)) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["smolvlm"]
        body = {"model": "smolvlm", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
        reply = client.post("/v1/chat/completions", json=body).json()
    answer = assistant.answer(Conversation.ask("What is it?", images=PICTURES[:1]), max_new_tokens=8)
    assert reply["choices"][0]["message"]["content"] == answer.text
    assert reply["usage"]["prompt_tokens"] == answer.prompt_tokens


def test_a_folder_that_is_not_whole_is_one_line(tmp_path: Path):
    def without_processor(folder: Path) -> None:
        for file in ("processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / file).unlink()

    def without_a_weight(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights.pop(next(name for name in weights if "multi_modal_projector" in name))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    for i, (change, expected) in enumerate(
        [
            (without_processor, "its processor cannot be opened"),
            (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
            (without_a_weight, "the weights lack .*multi_modal_projector"),
            (lambda folder: (folder / "model.safetensors").unlink(), "its weights cannot be read"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "its weights cannot be read"),
            (lambda folder: (folder / "config.json").write_text("{"), "config.json: not json"),
            (lambda folder: (folder / "config.json").write_text("{}"), "config.json: has no model_type"),
        ]
    ):
        folder = copytree(tiny_foreign.folder("llava"), tmp_path / f"model{i}")
        change(folder)
        with pytest.raises(BadInput, match=expected) as refusal:
            open_engine(folder)
        assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sphinx", "'sphinx', which transformers .* does not know"), ("vit", "vit is not a model that writes answers")],
)
def test_a_model_that_cannot_answer_is_one_line(tmp_path: Path, kind: str, expected: str):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(BadInput, match=expected) as refusal:
        open_engine(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_processor_of_another_model_is_refused(tmp_path: Path):
    folder = copytree(tiny_foreign.folder("llava"), tmp_path / "model")
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 8}))
    foreign = ForeignEngine(folder)
    with pytest.raises(BadInput, match="do not belong together"):
        written(foreign, Conversation.ask("What is it?", images=PICTURES[:1]))


def test_prompts_of_another_processor_are_our_own_mistake():
    with pytest.raises(TypeError, match="own processor"):
        engine("llama").prefill(tiny_models.processor().prompt(Conversation.ask("What?")))
