"""ONNX parts against the modules they were made from, and export folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
import torch

from trisense.chat import Conversation
from trisense.engines import open_engine
from trisense.engines.onnx import Manifest, OnnxEngine
from trisense.errors import BadInput
from trisense.model import export
from trisense.model.checkpoint import load_model
from trisense.model.export import export_onnx


def session(folder: Path, part: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "onnx" / f"{part}.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
def test_encoders_and_projectors_equal_torch(design: str):
    model, folder = load_model(tiny_models.folder(design)).eval(), tiny_models.exported(design)
    rng = np.random.default_rng(0)
    frames = (1, 7, 8, 9, 100, 263) if design == "spark" else (100,)
    values = {
        "image": [rng.normal(size=(1, 3, 32, 32))],
        "audio": [rng.normal(size=(1, 80, count)) for count in frames],
    }
    for sense, examples in values.items():
        encoder, projector = session(folder, f"{sense}_encoder"), session(folder, f"{sense}_projector")
        for example in examples:
            example = example.astype(np.float32)
            with torch.no_grad():
                features = model.senses[sense].encode(torch.from_numpy(example))
                vectors = model.senses[sense].projector(features)
            (got,) = encoder.run(None, {encoder.get_inputs()[0].name: example})
            assert got.shape == features.shape
            assert np.abs(got - features.numpy()).max() < 1e-4
            (got,) = projector.run(None, {"features": features.numpy()})
            assert np.abs(got - vectors.numpy()).max() < 1e-4


@pytest.mark.parametrize(("before", "count"), [(0, 1), (0, 5), (1, 1), (3, 4), (200, 1)])
def test_the_decoder_equals_torch_with_any_cache(before: int, count: int):
    folder = tiny_models.exported()
    model, manifest = load_model(tiny_models.folder()).eval().language_model, Manifest.read(folder)
    embeds = torch.randn(1, before + count, manifest.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(inputs_embeds=embeds).logits[:, before:].numpy()
    decoder = session(folder, "decoder")
    names = [i.name for i in decoder.get_inputs() if i.name.startswith("past")]
    cache = [np.zeros((1, manifest.kv_heads, 0, manifest.head_dim), np.float32)] * len(names)
    for part in (embeds[:, :before], embeds[:, before:]):
        if part.shape[1]:
            positions = np.arange(part.shape[1])
            inputs = {"inputs_embeds": part.numpy(), "positions": positions, **dict(zip(names, cache, strict=True))}
            logits, *cache = decoder.run(None, inputs)
    assert cache[0].shape[2] == before + count
    assert np.abs(logits - expected).max() < 1e-4


def test_a_manifest_describes_the_parts_and_no_file_knows_the_machine():
    folder = tiny_models.exported()
    manifest = Manifest.read(folder)
    manifest.verify(folder)
    config = tiny_models.config().text_config
    assert set(manifest.parts) == {
        "embed_tokens",
        "decoder",
        *(f"{sense}_{part}" for sense in ("image", "audio") for part in ("encoder", "projector")),
    }
    assert (manifest.layers, manifest.kv_heads, manifest.head_dim) == (2, 2, 8)
    assert (manifest.hidden_size, manifest.vocab_size, manifest.max_positions) == (32, config.vocab_size, 512)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "trisense"
    here = str(Path(export.__file__).parents[2]).encode()
    assert not [path for path in folder.rglob("*") if path.is_file() and here in path.read_bytes()]


def test_int8_is_smaller_and_close():
    whole, small = tiny_models.exported(), tiny_models.exported(weights="int8")
    manifest = Manifest.read(small)
    assert manifest.weights == "int8"
    for part in ("embed_tokens", "decoder"):
        assert manifest.parts[part].bytes < Manifest.read(whole).parts[part].bytes
    prompt = tiny_models.processor().prompt(tiny_models.conversation())
    engines = [OnnxEngine(folder) for folder in (whole, small)]
    likely = [engine.logprobs(engine.prefill(prompt), [104, 105, 33, 260]) for engine in engines]
    difference = np.abs(likely[0] - likely[1]).max()
    assert 0 < difference < 0.5


def test_an_export_says_where_it_is_and_nothing_else(tmp_path: Path):
    """In a process of its own: onnxruntime's quantiser sets up logging when it is first imported."""
    command = ["export", "onnx", str(tiny_models.folder()), str(tmp_path / "out"), "--weights", "int8"]
    done = subprocess.run([sys.executable, "-m", "trisense", *command], capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote {tmp_path / 'out'}\n" and "quantize" not in done.stderr


def test_int8_embeddings_are_off_by_at_most_half_a_step():
    table = load_model(tiny_models.folder()).get_input_embeddings().weight.detach().numpy()
    (got,) = session(tiny_models.exported(weights="int8"), "embed_tokens").run(
        None, {"input_ids": np.arange(len(table))[None]}
    )
    assert (np.abs(got[0] - table) <= np.abs(table).max(1, keepdims=True) / 127 * 0.501).all()


def test_an_export_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise RuntimeError("no more room")

    monkeypatch.setattr(export, "write_parts", fail)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("an earlier one")
    with pytest.raises(RuntimeError, match="no more room"):
        export_onnx(tiny_models.folder(), tmp_path / "out")
    assert (tmp_path / "out" / "export.json").read_text() == "an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_earlier_export_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = Manifest.read(tiny_models.exported())
    monkeypatch.setattr(export, "write_parts", lambda *_: manifest)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("an earlier one")
    (tmp_path / "out" / "old").write_text("old")
    export_onnx(tiny_models.folder(), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "export.json",
        "config.json",
        "tokenizer.json",
        "processor_config.json",
    }
    assert Manifest.model_validate_json((tmp_path / "out" / "export.json").read_text()) == manifest


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    for arguments, expected in (
        ((tiny_models.folder(), tmp_path / "notes"), "not an earlier export"),
        ((tiny_models.folder(), tmp_path / "notes" / "diary.txt"), "not an earlier export"),
        (
            (tiny_models.folder(), tmp_path / "out", "int3"),
            "weights 'int3': unknown; expected one of float32, float16, int8, int4",
        ),
        ((tmp_path / "nothing", tmp_path / "out"), "no such folder"),
    ):
        with pytest.raises(BadInput, match=expected) as refusal:
            export_onnx(*arguments)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear"


# Trained parts: the language models, encoders and projectors of the five designs.

QUESTION = Conversation.ask("What is it?", images=[tiny_models.picture(0)])
ANSWER = [104, 105, 33]


def long_rope() -> str:
    """An override that gives `eden` a Phi-3.5 as published: angles for contexts of up to 256, others for up to 512."""
    folder = tiny_models.parts() / "phi3-long"
    if not folder.is_dir():
        shutil.copytree(tiny_models.parts() / "phi3", folder)
        config = json.loads((folder / "config.json").read_text())
        config.pop("rope_parameters", None)
        config["rope_scaling"] = {"type": "longrope", "short_factor": [1.5] * 16, "long_factor": [9.0] * 16}
        config |= {"original_max_position_embeddings": 256, "rope_theta": 10000.0, "sliding_window": 262144}
        (folder / "config.json").write_text(json.dumps(config))
    return f"design.text.pretrained={folder}"


def trained(recipe: str) -> Path:
    return tiny_models.trained(recipe, *([long_rope()] if recipe == "eden" else []))


@cache
def parts_of(recipe: str, weights: str = "float32") -> Path:
    out = trained(recipe).with_name(f"onnx-{weights}")
    export_onnx(trained(recipe), out, weights)
    return out


def likely(folder: Path, conversation: Conversation = QUESTION) -> np.ndarray:
    engine = open_engine(folder)
    return engine.logprobs(engine.prefill(engine.processor.prompt(conversation)), ANSWER)


# phi-2 and patches of CLIP; Phi-3.5 and its one pooled vector.
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["jnana", "eden"])
def test_trained_parts_answer_without_torch_as_with_it(recipe: str):
    folders = trained(recipe), parts_of(recipe)
    answers = []
    for folder in folders:
        engine = open_engine(folder)
        answers.append(list(engine.stream(engine.prefill(engine.processor.prompt(QUESTION)), max_new_tokens=24)))
    assert isinstance(open_engine(folders[1]), OnnxEngine)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 3, "a model that repeats itself proves little"
    expected = likely(folders[0])
    assert np.abs(expected - likely(folders[1])).max() < 1e-3
    dark = Conversation.ask("What is it?", images=[np.zeros((40, 50, 3), np.uint8)])
    assert np.abs(expected - likely(folders[1], dark)).max() > 1e-2, "a model that does not look proves little"


@pytest.mark.slow
def test_ears_of_a_design_leave_with_it(tmp_path: Path):
    """Under audio=embed: Whisper's encoder, eight of its vectors joined to one, and the projector behind it."""
    ears = ["audio=embed", f"ears.audio.pretrained={tiny_models.whisper()}", "ears.sense.width=128"]
    folder = tiny_models.trained("jnana", *ears, "ears.placeholder=268")
    export_onnx(folder, tmp_path / "out")
    asked = Conversation.ask("What is it?", images=[tiny_models.picture(0)], audios=[tiny_models.sound(0)])
    answers = []
    for engine in (open_engine(folder), open_engine(tmp_path / "out")):
        prompt = engine.processor.prompt(asked)
        assert [slot.length for slot in prompt.media] == [4, 188]
        answers.append(list(engine.stream(engine.prefill(prompt), max_new_tokens=12)))
    assert answers[0] == answers[1] and answers[0]


@pytest.mark.slow
def test_trained_parts_answer_where_there_is_no_torch(samples: Path):
    script = """
import sys
from trisense.assistant.assistant import Assistant
from trisense.chat import Conversation

sys.modules |= {"torch": None, "transformers": None}
conversation = Conversation.ask("What?", images=[sys.argv[2]])
assert Assistant.from_pretrained(sys.argv[1]).answer(conversation, max_new_tokens=4).completion_tokens
"""
    arguments = [sys.executable, "-c", script, str(parts_of("eden")), str(samples / "picture.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_context_of_phi35_ends_where_its_angles_change():
    assert Manifest.read(parts_of("eden")).max_positions == 256
    assert Manifest.read(parts_of("jnana")).max_positions == 512
    without = tiny_models.trained("eden")
    assert np.abs(likely(without) - likely(trained("eden"))).max() > 1e-2, "the factors of a short context count"


# Random weights exaggerate what rounding does; trained ones lose far less.
@pytest.mark.slow
@pytest.mark.parametrize(("weights", "share", "most"), [("float16", 0.65, 0.02), ("int8", 0.5, 0.3), ("int4", 0.4, 3)])
def test_smaller_weights_are_close(weights: str, share: float, most: float):
    whole, small = parts_of("eden"), parts_of("eden", weights)
    manifest = Manifest.read(small)
    assert manifest.weights == weights
    assert manifest.parts["decoder"].bytes < share * Manifest.read(whole).parts["decoder"].bytes
    assert 0 < np.abs(likely(whole) - likely(small)).max() < most


@pytest.mark.slow
def test_int8_keeps_convolutions_in_16_bits_and_nothing_else():
    graph = onnx.load(parts_of("eden", "int8") / "onnx" / "image_encoder.onnx").graph
    widened = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    halves = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT16}
    weights = [widened[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert weights and halves == set(weights)


@pytest.mark.slow
def test_int4_spares_the_head_and_what_sees():
    bits = {
        part: sorted(
            attribute.i
            for node in onnx.load(parts_of("eden", "int4") / "onnx" / f"{part}.onnx").graph.node
            for attribute in node.attribute
            if node.op_type == "MatMulNBits" and attribute.name == "bits"
        )
        for part in ("decoder", "image_encoder", "image_projector")
    }
    assert bits["decoder"] == [4] * 8 + [8], "two layers of four matrices each, and the head"
    assert set(bits["image_encoder"]) == set(bits["image_projector"]) == {8}


@pytest.mark.slow
def test_a_large_part_is_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of ONNX ends at 2 GiB."""
    monkeypatch.setattr(export, "LARGE", 0)
    export_onnx(trained("eden"), tmp_path / "out", "int4")
    manifest = Manifest.read(tmp_path / "out")
    manifest.verify(tmp_path / "out")
    assert {"decoder", "decoder.onnx.data"} <= set(manifest.parts)
    assert np.array_equal(likely(tmp_path / "out"), likely(parts_of("eden", "int4")))


def linear() -> export._Part:
    return export._Part(torch.nn.Linear(64, 64), (torch.randn(1, 3, 64),), (None,), ["x"], ["y"])


def computed(path: Path, part: export._Part) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"x": part.arguments[0].numpy()})[0]


@torch.no_grad()
@pytest.mark.parametrize("large", [False, True])
def test_float16_is_how_weights_are_stored_and_not_how_they_are_computed_with(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "LARGE", 0 if large else 10**9)
    part, path = linear(), tmp_path / "linear.onnx"
    export._write(part, path, "float16")
    assert path.with_suffix(".onnx.data").exists() == large
    graph = onnx.load(path).graph
    kinds = {len(tensor.dims): tensor.data_type for tensor in graph.initializer}
    assert kinds == {1: onnx.TensorProto.FLOAT, 2: onnx.TensorProto.FLOAT16}
    part.module.weight.copy_(part.module.weight.half())
    assert np.abs(computed(path, part) - part.module(part.arguments[0]).numpy()).max() < 1e-5


@torch.no_grad()
def test_a_number_beyond_float16_stays_what_it_is(tmp_path: Path):
    part = linear()
    part.module.weight[0, 0] = 1e6
    export._write(part, tmp_path / "linear.onnx", "float16")
    np.testing.assert_allclose(
        computed(tmp_path / "linear.onnx", part), part.module(part.arguments[0]).numpy(), rtol=1e-5, atol=1e-5
    )
