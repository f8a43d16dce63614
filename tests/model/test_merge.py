"""Trained parts merged into one model: it answers as the parts did, and what they were made from stays."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from shutil import copytree

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import trisense.model  # noqa: F401 - registers the classes
from trisense.chat import Conversation
from trisense.engines import open_engine
from trisense.errors import BadInput
from trisense.model.merge import add_up, config_of, merge, merged
from trisense.model.pretrained import load_design
from trisense.model.trained import load_trained, read_recipe

QUESTION = Conversation.ask("What is it?", images=[tiny_models.picture(0)])


def digests(folder: Path) -> dict[str, str]:
    return {str(file): sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


# phi-2 and patches through every layer kind of its adapter; Phi-3.5 and one pooled vector.
@pytest.mark.parametrize("recipe", ["jnana", "eden"])
def test_a_merged_folder_answers_as_the_parts(recipe: str, tmp_path: Path):
    folder, out = tiny_models.trained(recipe), tmp_path / "merged"
    before = digests(tiny_models.parts()) | digests(folder)
    merge(folder, out)
    assert digests(tiny_models.parts()) | digests(folder) == before

    unmerged, processor = load_trained(folder)
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    inputs = AutoProcessor.from_pretrained(out).batch([processor.prompt(QUESTION)], return_tensors="pt")
    with torch.inference_mode():
        logits = unmerged(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, logits, atol=5e-4, rtol=1e-4)
        unmerged.language_model.disable_adapters()
        assert (unmerged(**inputs).logits - logits).abs().max() > 0.1, "an adapter that does nothing proves little"
        unmerged.language_model.enable_adapters()
    engines = [open_engine(one) for one in (folder, out)]
    answers = [list(one.stream(one.prefill(one.processor.prompt(QUESTION)), max_new_tokens=24)) for one in engines]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 3, "a model that repeats itself proves little"
    assert engines[1].processor.to_dict() == processor.to_dict(), "the layout of the last stage"
    machine = str(tiny_models.parts()).encode()
    assert not [file.name for file in out.rglob("*") if file.is_file() and machine in file.read_bytes()]
    # What transformers generates ends where the engine's answers do.
    assert model.generation_config.eos_token_id == sorted(processor.end_ids)
    length = inputs["input_ids"].shape[1]
    said = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, length:].tolist()
    assert [token for token in said if token not in processor.end_ids] == answers[0]


def test_merging_is_what_peft_does():
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tiny_models.trained("eden")
    base = AutoModelForCausalLM.from_pretrained(tiny_models.parts() / "phi3", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload().state_dict()
    ours = merged(folder)[0].language_model.state_dict()
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)


def test_the_layout_is_that_of_the_stage():
    folder = tiny_models.trained("jnana", stage="align")
    assert merged(folder)[1].layout == read_recipe(folder)[0].stages["align"].layout


def test_a_design_in_4_bits_merges_into_whole_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    folder = copytree(tiny_models.trained("eden"), tmp_path / "trained")
    record = json.loads((folder / "recipe.json").read_text())
    record["recipe"]["design"]["quantisation"] = {"weights": "nf4"}
    (folder / "recipe.json").write_text(json.dumps(record))
    four, whole = (merged(one)[0].state_dict() for one in (folder, tiny_models.trained("eden")))
    assert all(torch.equal(value, whole[name]) for name, value in four.items())


def test_16_bits_are_half_the_size(tmp_path: Path):
    folder = tiny_models.trained("eden")
    merge(folder, tmp_path / "whole")
    merge(folder, tmp_path / "half", "bfloat16")
    whole, half = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "half"))
    assert whole.keys() == half.keys()
    for name, value in whole.items():
        assert half[name].dtype == torch.bfloat16
        assert torch.equal(half[name], value.bfloat16()), "merged before it is rounded"
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    open_engine(tmp_path / "half")


def test_parts_without_an_adapter_merge_too():
    recipe, _ = read_recipe(tiny_models.trained("jnana"))
    model, _ = load_design(recipe.design)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_up(model.language_model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_config_is_known_before_a_weight_is_read(tmp_path: Path):
    folder = tiny_models.trained("jnana")
    merge(folder, tmp_path / "merged")
    ours, theirs = config_of(folder), config_of(tmp_path / "merged")
    assert ours.senses == theirs.senses
    assert ours.placeholders == theirs.placeholders == {"image": 269}
    assert ours.text_config.hidden_size == theirs.text_config.hidden_size == 64


def test_what_cannot_be_merged_is_refused_and_nothing_is_left(tmp_path: Path):
    folder = tiny_models.trained("eden")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    broken = copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "adapter" / "adapter_model.safetensors")
    save_file({k: v * float("nan") for k, v in weights.items()}, broken / "adapter" / "adapter_model.safetensors")
    (tmp_path / "nothing").mkdir()
    for arguments, expected in (
        ((folder, tmp_path / "out", "int8"), "dtype 'int8': unknown; expected one of float32, bfloat16, float16"),
        ((folder, tmp_path / "notes"), "notes: exists and is not an earlier export"),
        ((folder, folder), "exists and is not an earlier export"),
        ((tmp_path / "nothing", tmp_path / "out"), "recipe.json: cannot be read"),
        ((broken, tmp_path / "out"), "broken/adapter: .*its training went wrong"),
    ):
        with pytest.raises(BadInput, match=expected) as refusal:
            merge(*arguments)
        assert "\n" not in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "broken", "nothing"}
