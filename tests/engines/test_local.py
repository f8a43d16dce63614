"""The torch engine: the same tokens as generate(), and devices."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tiny_models
import torch

from trisense.chat import Conversation
from trisense.engines import PACKAGED
from trisense.engines.local import LocalEngine
from trisense.engines.onnx import OnnxEngine
from trisense.errors import BadInput

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
def test_the_same_tokens_as_generate(design: str):
    engine = LocalEngine(tiny_models.folder(design))
    prompt = engine.processor.prompt(tiny_models.conversation())
    pictures = [values for slot, values in zip(prompt.media, prompt.values, strict=True) if slot.sense == "image"]
    sounds = [values for slot, values in zip(prompt.media, prompt.values, strict=True) if slot.sense == "audio"]
    longest = max(sound.shape[1] for sound in sounds)
    out = engine.model.generate(
        torch.from_numpy(prompt.ids)[None],
        pixel_values=torch.from_numpy(np.stack(pictures)),
        input_features=torch.from_numpy(np.stack([np.pad(s, ((0, 0), (0, longest - s.shape[1]))) for s in sounds])),
        input_features_mask=torch.tensor([[frame < s.shape[1] for frame in range(longest)] for s in sounds]),
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=list(engine.processor.placeholders.values()),
    )
    assert list(engine.stream(engine.prefill(prompt), max_new_tokens=32)) == out[0, len(prompt.ids) :].tolist()


def test_a_cpu_computes_in_float32_whatever_the_file_holds(tmp_path: Path):
    engine = LocalEngine(tiny_models.folder())
    folder = copytree(tiny_models.folder(), tmp_path / "half")
    engine.model.to(torch.bfloat16).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in LocalEngine(folder).model.parameters()} == {torch.float32}


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_no_such_device_is_one_line(device: str):
    with pytest.raises(BadInput, match=f"device {device}") as refusal:
        LocalEngine(tiny_models.folder(), device)
    assert "\n" not in str(refusal.value)


def test_placeholders_of_another_processor_are_refused(tmp_path: Path):
    folder = copytree(tiny_models.folder(), tmp_path / "model")
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["placeholders"]["image"] = 261
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="do not belong together"):
        LocalEngine(folder)


def test_a_processor_that_counts_otherwise_is_refused(tmp_path: Path):
    folder = copytree(tiny_models.folder(), tmp_path / "model")
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image"]["tokens"] = 15
    path.write_text(json.dumps(config))
    engine = LocalEngine(folder)
    with pytest.raises(BadInput, match="30 image placeholders but the images give 32"):
        engine.prefill(engine.processor.prompt(tiny_models.conversation()))


def test_the_packaged_spark_is_one_model_in_two_forms():
    """Its torch weights, which other recipes build upon, answer as its ONNX parts do."""
    torch_form, onnx_form = LocalEngine(PACKAGED, "cpu"), OnnxEngine(PACKAGED)
    asked = [
        Conversation.ask("What color is the tree?", images=[EXAMPLES / "picture.png"]),
        Conversation.ask("What does the speaker say?", audios=[EXAMPLES / "voice.wav"]),
        Conversation.ask("Who has the blue fish?", texts=[(EXAMPLES / "note.txt").read_text()]),
    ]
    for conversation in asked:
        prompt = onnx_form.processor.prompt(conversation)
        state = onnx_form.prefill(prompt)
        answer = list(onnx_form.stream(state, max_new_tokens=16))
        assert answer and state.finish == "stop"
        other = torch_form.prefill(torch_form.processor.prompt(conversation))
        # Numbers in 16 bits, and an embedding table that is rounded by blocks where ONNX has it by rows.
        np.testing.assert_allclose(
            torch_form.logprobs(other, answer), onnx_form.logprobs(onnx_form.prefill(prompt), answer), atol=0.05
        )
        assert list(torch_form.stream(other, max_new_tokens=16)) == answer
