"""ONNX parts against the modules they were made from, and export folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_models
import torch

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
        ((tiny_models.folder(), tmp_path / "out", "int3"), "weights 'int3': unknown; expected one of float32, int8"),
        ((tmp_path / "nothing", tmp_path / "out"), "no such folder"),
    ):
        with pytest.raises(BadInput, match=expected) as refusal:
            export_onnx(*arguments)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear"
