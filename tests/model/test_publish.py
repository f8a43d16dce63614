"""Cards say what a recipe says; what would be uploaded is recorded by a Hub that is none."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import tiny_models
import yaml

from trisense.errors import BadInput
from trisense.model import publish
from trisense.model.merge import merge
from trisense.model.publish import model_card, push
from trisense.recipe import read


class Hub:
    """Takes what `HfApi` takes and keeps it."""

    calls: list[tuple[str, Any]] = []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if repo_id.startswith("others/"):
            raise OSError("403 Forbidden: you don't have the rights\nRequest ID: 7")
        self.calls.append((repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], **options: Any) -> None:
        files = {file.relative_to(folder_path).as_posix() for file in Path(folder_path).rglob("*") if file.is_file()}
        self.calls.append((repo_id, files))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    monkeypatch.setattr(publish, "HfApi", Hub)
    monkeypatch.setattr(publish, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(Hub, "calls", [])
    return Hub.calls


def published(folder: Path) -> Path:
    """Trained parts that stand on models of the Hub, as those of a real run do."""
    copytree(tiny_models.trained("jnana"), folder)
    record = json.loads((folder / "recipe.json").read_text())
    record["recipe"] = read("jnana").model_dump(mode="json")
    (folder / "recipe.json").write_text(json.dumps(record))
    return folder


def front(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_trained_parts_are_uploaded_with_a_card(hub: list[tuple[str, Any]], tmp_path: Path):
    folder = published(tmp_path / "trained")
    assert push(folder, "me/jnana", private=True) == "https://huggingface.co/me/jnana"
    assert hub[0] == ("me/jnana", {"private": True, "exist_ok": True})
    repository, files = hub[1]
    assert repository == "me/jnana"
    assert files == {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert {"recipe.json", "projector/image.safetensors", "adapter/adapter_model.safetensors", "README.md"} <= files
    card = (folder / "README.md").read_text()
    assert front(card)["base_model"] == ["microsoft/phi-2", "openai/clip-vit-base-patch32"]
    assert front(card)["base_model_relation"] == "adapter"
    assert "| projector | residual, trained |" in card
    assert "- `align`: COCO 2017 captions" in card
    assert "- `instruct`: LLaVA-Instruct-150K, 356,752 pairs; the recipe says 45,000 steps of 8 samples" in card
    assert "trisense ask --model me/jnana" in card
    # A card that is there, perhaps with words of its author's own, stays.
    (folder / "README.md").write_text("mine")
    push(folder, "me/jnana")
    assert (folder / "README.md").read_text() == "mine"


def test_a_card_says_only_what_was_learned_and_names_no_folder():
    recipe = read("jnana", tiny_models.pretrained_overrides("jnana", tiny_models.parts()))
    card = model_card(recipe, "align", "merged")
    assert "instruct" not in card
    assert "LoRA of rank" not in card
    assert "language model | phi, frozen" in card
    assert str(tiny_models.parts()) not in card
    assert "base_model" not in front(card)


def test_what_is_made_of_trained_parts_has_a_card_and_can_be_pushed(hub: list[tuple[str, Any]], tmp_path: Path):
    merge(tiny_models.trained("eden"), tmp_path / "merged")
    push(tmp_path / "merged", "me/eden")
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= hub[1][1]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "is part of the language model's weights" in card
    assert "LoRA of rank 8, alpha 16" in card
    assert "trisense ask --model me/eden" in card


def test_what_cannot_be_pushed_is_refused_in_one_line(
    hub: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = published(tmp_path / "trained")
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        ((tmp_path / "empty", "me/it"), "not a model folder"),
        ((folder, "it"), "'it': not the id of a repository"),
        ((tiny_models.trained("jnana"), "me/it"), r"design.text.pretrained is .*/phi, a folder of this machine"),
        ((tiny_models.folder(), "me/it"), "README.md: no such file; write what the model is"),
        ((folder, "others/it"), r"others/it: the Hub refused \(403 Forbidden: you don't have the rights\)"),
    ):
        with pytest.raises(BadInput, match=expected) as refusal:
            push(*arguments)
        assert "\n" not in str(refusal.value)
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(BadInput, match="no token of the Hub: log in with `hf auth login`, or set HF_TOKEN"):
        push(folder, "me/it")
    assert not hub
