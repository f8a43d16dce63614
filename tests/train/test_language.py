"""Stage 0: a tiny Phi learns text from nothing, resumes to the bit, and becomes the language model of a design."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image as Pictures
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiConfig, PhiForCausalLM

from trisense.errors import BadInput
from trisense.model.trained import load_trained
from trisense.recipe import Recipe, read
from trisense.stage import LanguageStage
from trisense.tokens import TextTokenizer
from trisense.train.files import train_stage as train_files
from trisense.train.language import (
    Language,
    build_language_model,
    byte_lengths,
    get_ready,
    held_back_loss,
    train_language,
)
from trisense.train.stages import train_stage

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def recipe(*overrides: str) -> Recipe:
    """`shrunk-phi`, shrunk once more."""
    short = {"steps": 30, "batch_size": 8, "block_size": 16, "lr": 1e-2, "warmup_steps": 3, "precision": "float32"}
    short |= {"log_every": 5, "evaluate_every": 15, "save_every": 5, "held_back": 0.1}
    changes = [f"design.text.{key}={value}" for key, value in SHAPE.items()]
    changes += ["design.vocabulary=300", "design.text.vocab_size=320"]
    changes += [f"stages.language.{key}={value}" for key, value in short.items()]
    return read("shrunk-phi", [*changes, *overrides])


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notes in a little grammar, half as .txt and half as .jsonl."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    names, things, colours = ("Anna", "Ben", "Zoë"), ("cup", "fish", "tree"), ("red", "blue", "green")

    def note() -> str:
        return " ".join(f"{rng.choice(names)} has the {rng.choice(colours)} {rng.choice(things)}." for _ in range(6))

    for number in range(20):
        (folder / f"{number:02}.txt").write_text(note(), encoding="utf-8")
    records = [json.dumps({"text": note()}) for _ in range(40)]
    (folder / "more.jsonl").write_text("\n".join(records), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def trained(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_stage(recipe(), "language", texts, tmp_path_factory.mktemp("run"), device="cpu")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_says_how_well(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines(trained.parent)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] > 0.7 * math.log(320) and losses[-1] < 0.5 * losses[0]
    held = [row for row in rows if "held_loss" in row]
    assert [row["step"] for row in held] == [15, 30]
    assert held[-1]["held_loss"] < held[0]["held_loss"] < math.log(320)
    for row in held:
        assert row["perplexity"] == pytest.approx(math.exp(row["held_loss"]))
        assert 0 < row["bits_per_byte"] < 8


def test_the_loss_of_a_packed_window_is_transformers_own(texts: Path, tmp_path: Path) -> None:
    """Their forward shifts labels itself; ours has the targets one later in the stream."""
    ready = get_ready(recipe(), "language", texts, tmp_path)
    batch = ready.batch_at(3)
    whole = torch.cat([batch.inputs["input_ids"], batch.inputs["targets"][:, -1:]], 1)
    assert (whole == ready.learner.language_model.config.eos_token_id).any(), "a document ends within"
    with torch.no_grad():
        theirs = ready.learner.language_model.eval()(input_ids=whole, labels=whole, use_cache=False).loss
        ours = ready.learner(**batch.inputs)
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-6, atol=0)
    assert batch.items == batch.inputs["targets"].numel()
    assert ours.logits.shape == (*batch.inputs["targets"].shape, 320)
    held = held_back_loss(ready.learner, ready.windows, 3, byte_lengths(ready.tokenizer, 320))
    first, last = ready.windows.learned * 16, (ready.windows.learned + ready.windows.held) * 16
    stream = torch.from_numpy(ready.windows.stream.tokens[first : last + 1].astype(np.int64))
    with torch.no_grad():
        rows = [stream[start : start + 17][None] for start in range(0, last - first, 16)]
        one_by_one = [float(ready.learner.language_model(input_ids=row, labels=row).loss) for row in rows]
    assert held["held_loss"] == pytest.approx(np.mean(one_by_one), rel=1e-5)
    end = ready.learner.language_model.config.eos_token_id
    said = np.split(stream[1:].numpy(), np.flatnonzero(stream[1:].numpy() == end))
    size = sum(len(ready.tokenizer.decode(part.tolist()).encode()) for part in said)
    bits = held["held_loss"] * (last - first) / math.log(2) / size
    assert held["bits_per_byte"] == pytest.approx(bits, rel=1e-6)


def test_a_folder_of_transformers_comes_out(trained: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert isinstance(model, PhiForCausalLM) and isinstance(model.config, PhiConfig)
    assert {path.name for path in trained.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert tokenizer.eos_token == "<|endoftext|>" and tokenizer.eos_token_id == model.config.eos_token_id
    ids = tokenizer("Anna has the", return_tensors="pt", add_special_tokens=False).input_ids
    said = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert any(colour in tokenizer.decode(said[0]) for colour in ("red", "blue", "green"))
    saved = torch.load(trained.parent / "checkpoint.pt", weights_only=True)["model"]
    assert torch.equal(saved["language_model.model.embed_tokens.weight"], model.get_input_embeddings().weight)


def test_a_stopped_stage_goes_on_and_ends_the_same(
    trained: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = Language.forward, []

    def broken(self: Language, *args: Any, **inputs: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(0)
            if len(seen) == 19:
                raise OSError("disk gone")
        return real(self, *args, **inputs)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk gone"):
        patch.setattr(Language, "forward", broken)
        train_language(recipe(), "language", texts, tmp_path, device="cpu")
    assert torch.load(tmp_path / "language/checkpoint.pt", weights_only=True)["step"] == 15
    monkeypatch.setattr("trisense.train.language.train_tokenizer", None)
    monkeypatch.setattr("trisense.train.language.documents", None)
    again = train_language(recipe(), "language", texts, tmp_path, device="cpu")
    assert (again / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (tmp_path / "language/log.jsonl").read_bytes() == (trained.parent / "log.jsonl").read_bytes()


def test_it_goes_on_as_the_language_model_of_an_instruct_stage(trained: Path, tmp_path: Path) -> None:
    """Its spare rows stand for pictures; its end token, which closed documents, closes answers."""
    parts = tiny_models.pretrained(tmp_path / "parts")
    data = []
    for index, colour in enumerate(("red", "blue") * 6):
        Pictures.new("RGB", (40, 36), colour).save(tmp_path / f"{index}.png")
        said = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": f"the {colour} tree"}]
        data.append({"image": f"{index}.png", "conversations": said})
    (tmp_path / "llava.json").write_text(json.dumps(data))
    short = ["steps=20", "batch_size=4", "lr=1e-2", "warmup_steps=2", "precision=float32", "log_every=5"]
    short += ["buckets=null"]
    small = {"text.pretrained": trained, "placeholders.image": 319, "adapter.r": 8}
    jnana = read(
        "jnana",
        [
            *tiny_models.pretrained_overrides("jnana", parts),
            *(f"design.{key}={value}" for key, value in small.items()),
            *(f"stages.instruct.{option}" for option in short),
        ],
    )
    alone = jnana.model_copy(update={"stages": {"instruct": jnana.stages["instruct"]}})
    folder = train_files(alone, "instruct", tmp_path / "llava.json", tmp_path / "run", device="cpu")
    losses = [row["loss"] for row in lines(tmp_path / "run" / "instruct") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    model, processor = load_trained(folder)
    assert model.language_model.config.vocab_size == 320 and processor.placeholders == {"image": 319}
    assert processor.end_ids == {model.language_model.config.eos_token_id}


def test_rows_are_what_the_design_says_or_enough_with_some_to_spare(trained: Path) -> None:
    tokenizer = TextTokenizer.from_file(trained / "tokenizer.json")
    assert tokenizer.size <= 300
    design = recipe().design
    free = design.model_copy(update={"text": {k: v for k, v in design.text.items() if k != "vocab_size"}})
    assert build_language_model(free, tokenizer, 16).config.vocab_size == 320
    few = design.model_copy(update={"text": {**design.text, "vocab_size": 270}})
    with pytest.raises(BadInput, match=rf"vocab_size: 270 rows, fewer than the tokenizer's {tokenizer.size} tokens"):
        build_language_model(few, tokenizer, 16)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.language.block_size=256"], "block_size: 256, but design.text.max_position_embeddings is 128"),
        (["design.text={pretrained: microsoft/phi-2}"], "design.text: is pretrained, and this stage trains one"),
        (["design.text={model_type: clip_vision_model}"], "'clip_vision_model' is no causal language model"),
        (["design.layout.answer=['', '']"], "design.layout.answer.after: empty"),
    ],
)
def test_a_design_that_does_not_fit_is_refused(overrides: list[str], said: str, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        train_language(recipe(*overrides), "language", texts, tmp_path, device="cpu")
    assert said in str(refused.value)


def test_what_else_does_not_fit_is_one_line(trained: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("another text " * 200)
    run = trained.parent.parent

    def refusal(chosen: Recipe, name: str, data: Path, out: Path, **options: Any) -> str:
        with pytest.raises(BadInput) as refused:
            train_stage(chosen, name, data, out, device="cpu", **options)
        return str(refused.value)

    assert "this run began with another data" in refusal(recipe(), "language", tmp_path / "other.txt", run)
    other = recipe("design.text.num_hidden_layers=3")
    assert "this run began with another design" in refusal(other, "language", texts, run)
    assert "lr=0.01, now 0.02" in refusal(recipe("stages.language.lr=0.02"), "language", texts, run)
    assert "has no stage 'align' that learns from files; it has language" in refusal(recipe(), "align", texts, run)
    assert "--media: stage language trains" in refusal(recipe(), "language", texts, run, media=texts)
    assert "--after: stage language trains" in refusal(recipe(), "language", texts, run, after=texts)
    (tmp_path / "short.txt").write_text("short")
    assert "expected two at least" in refusal(recipe(), "language", tmp_path / "short.txt", tmp_path / "out")
    with pytest.raises(BadInput, match="has no stage 'align' that learns language; it has none"):
        get_ready(read("eden"), "align", texts, tmp_path)


def test_the_packaged_recipe_has_the_published_shape() -> None:
    packaged = read("shrunk-phi")
    config = PhiConfig(**{key: value for key, value in packaged.design.text.items() if key != "model_type"})
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (1280, 8, 51200)
    stage = packaged.stages["language"]
    assert isinstance(stage, LanguageStage)
    assert (stage.steps, stage.block_size) == (2100, 128)
    assert packaged.design.vocabulary == 50257
