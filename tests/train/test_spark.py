"""`trisense train spark` in miniature: from nothing to a folder that opens, exports and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pack
import torch
from children import TWO, finished

from trisense.cli import main
from trisense.data.world.feed import Feed
from trisense.errors import BadInput
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.prompt import featured
from trisense.recipe import Recipe, read
from trisense.stage import WorldStage
from trisense.train import spark
from trisense.train.conversing import answer_accuracy, answer_samples
from trisense.train.spark import Run, frozen_features, held_back, sense_of, train_spark, world_texts
from trisense.train.warmup import CELL, Hear, See

SMALL = (
    "design.vocabulary=400",
    "design.text={model_type: llama, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, "
    "num_attention_heads: 2, num_key_value_heads: 2, max_position_embeddings: 2048, tie_word_embeddings: true}",
    "design.vision.hidden_sizes=[8, 16, 16]",
    "design.vision.embedding_size=8",
    "design.vision.depths=[1, 1, 1]",
    "design.senses.image.width=16",
    "design.audio.hidden_size=32",
    "design.audio.num_hidden_layers=1",
    "design.audio.intermediate_size=64",
    "design.audio.subsampling_conv_channels=8",
    "design.senses.audio.width=32",
    "world.pictures=40",
    "world.utterances=60",
    *(
        f"stages.{stage}.{option}"
        for stage in read("spark").stages
        for option in ("steps=4", "batch_size=4", "precision=float32", "warmup_steps=2", "save_every=2", "log_every=1")
    ),
    *(
        f"stages.{name}.contexts.turns=2"
        for name, stage in read("spark").stages.items()
        if isinstance(stage, WorldStage)
    ),
)


# Enough for the language model to be right now and then.
LONGER = (
    *("stages.read.steps=150", "stages.read.batch_size=16", "stages.read.lr=3e-3"),
    *("stages.answer.steps=20", "stages.answer.batch_size=16", "stages.answer.lr=1e-3"),
)


def small(*overrides: str) -> Recipe:
    return read("spark", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `LONGER`."""
    out = tmp_path_factory.mktemp("spark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "TEXTS", 200)
        train_spark(small(*LONGER), out, "cpu")
    return out


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_from_nothing_to_a_folder_that_opens_exports_and_answers(
    made: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForImageTextToText

    losses = []
    for stage in small().stages:
        log = [json.loads(line) for line in (made / stage / "log.jsonl").read_text().splitlines()]
        assert all(np.isfinite(row.get("loss", 0)) for row in log)
        if small().stages[stage].learns in ("read", "answer"):
            losses += [row["loss"] for row in log if "loss" in row]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 2
    model = AutoModelForImageTextToText.from_pretrained(made / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000

    assert main(["export", "onnx", str(made / "model"), str(tmp_path / "onnx"), "--weights", "float32"]) == 0
    capsys.readouterr()
    given = ["--image", str(samples / "picture.png"), "--audio", str(samples / "voice.wav"), "--text", "Anna has it."]
    said = []
    for folder in (made / "model", tmp_path / "onnx"):
        assert main(["ask", "--model", str(folder), *given, "--max-tokens", "8", "Is there a cup?"]) == 0
        said.append(capsys.readouterr().out.strip())
    assert said[0] == said[1] != ""


@pytest.mark.slow
def test_the_same_command_goes_on_and_then_does_nothing_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark, "TEXTS", 200)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_spark(small(), whole, "cpu", bank=made / "bank")

    real, calls = spark.train, []

    def train_until_answer(learner, batch_at, stage, out, **options):
        calls.append(out.name)

        def broken_at_the_end(number):
            if stage.learns == "answer" and number == 3:
                raise OSError("disk gone")
            return batch_at(number)

        return real(learner, broken_at_the_end, stage, out, **options)

    monkeypatch.setattr(spark, "train", train_until_answer)
    with pytest.raises(OSError, match="disk gone"):
        train_spark(small(), stopped, "cpu", bank=made / "bank")
    assert calls == list(small().stages)
    assert not (stopped / "model").exists()
    monkeypatch.setattr(spark, "train", real)
    train_spark(small(), stopped, "cpu", bank=made / "bank")
    weights = "model/model.safetensors"
    first = files(stopped)
    assert first[weights] == files(whole)[weights]
    assert first["answer/log.jsonl"] == files(whole)["answer/log.jsonl"]
    assert first["run.json"] == files(whole)["run.json"]
    train_spark(small(), stopped, "cpu", bank=made / "bank")
    assert files(stopped) == first


@pytest.mark.slow
def test_real_data_is_learned_beside_the_world(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stage learns from a pack too; begun with another model, whose tokenizer knows other words, and whose eyes
    are of another shape."""
    monkeypatch.setattr(spark, "TEXTS", 200)
    pack = tiny_pack.write(tmp_path / "pack")
    wider = ("design.vision.hidden_sizes=[8, 16, 24]", "design.senses.image.width=24")
    recipe = small("design.vocabulary=420", "real.samples=60", "real.sentences=4", *wider)
    assert all(getattr(stage, "real", 0) for name, stage in recipe.stages.items() if name != "read_one")
    out = tmp_path / "run"
    train_spark(recipe, out, "cpu", bank=made / "bank", data=pack, after=made / "model")
    parts = "senses.image.encoder, senses.image.projector, senses.image.summary"
    assert f"{parts}: of another shape in {made / 'model'}, so from nothing\n" in capsys.readouterr().err
    for name, measure in (
        *(("see", "named_grocery"), ("see", "told_grocery"), ("see", "nothing"), ("hear", "wer_fsdd")),
        *(("read", "real_all"), ("read_steps", "real_all"), ("answer", "real_all")),
    ):
        rows = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
        assert any(measure in row for row in rows), (name, rows[-1])
    card = (out / "answer" / "run.md").read_text()
    assert "real pictures" in card
    capsys.readouterr()
    chosen = ["--task", "name an emoji", "--task", "spoken digits"]
    assert main(["evaluate", "real", "--data", str(pack), "--model", str(out / "model"), "--n", "2", *chosen]) == 0
    assert "| spoken digits | exact |" in capsys.readouterr().out
    with pytest.raises(BadInput, match="another data"):
        train_spark(recipe, out, "cpu", bank=made / "bank", after=made / "model")


@pytest.mark.slow
def test_it_runs_under_torchrun_as_it_is(made: Path, tmp_path: Path) -> None:
    stages = [word for name in small().stages for word in (f"stages.{name}.batch_size=2", f"stages.{name}.steps=2")]
    shared = ["--bank", str(made / "bank"), "--device", "cpu", *SMALL, *stages]
    two = finished(*TWO, "-m", "trisense", "train", "spark", "--out", tmp_path / "two", *shared)
    assert two.stdout.count("wrote ") == 1
    assert two.stderr.count("2 processes on cpu, gloo, DistributedDataParallel") == len(small().stages)
    for stage in small().stages:
        rows = [json.loads(line) for line in (tmp_path / "two" / stage / "log.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    from transformers import AutoModelForImageTextToText

    AutoModelForImageTextToText.from_pretrained(tmp_path / "two" / "model")


@pytest.mark.slow
def test_a_run_of_other_options_is_refused(made: Path, tmp_path: Path) -> None:
    recipe = json.loads((made / "run.json").read_text())
    assert recipe["world"]["pictures"] == 40, "the resolved recipe stays with the run"
    for named, overrides, seed in (
        ("another seed", LONGER, 1),
        ("another design", (*LONGER, "design.vocabulary=401"), 0),
        ("another world", (*LONGER, "world.pictures=41"), 0),
        ("lr=0.002, now 0.1", (*LONGER, "stages.see.lr=0.1"), 0),
        ("steps=150, now 4", (), 0),
    ):
        with pytest.raises(BadInput, match=named):
            train_spark(small(*overrides), made, "cpu", seed)
    (tmp_path / "tokenizer.json").write_bytes((made / "tokenizer.json").read_bytes())
    with pytest.raises(BadInput, match="bank was made with other options"):
        train_spark(small("world.pictures=41"), tmp_path, "cpu", bank=made / "bank")


@pytest.mark.slow
def test_accuracy_is_what_greedy_decoding_gets_right(made: Path) -> None:
    """One forward over all says the same as decoding every answer, each after the true answers before it."""
    from transformers import AutoModelForImageTextToText

    from trisense.data.world.bank import Bank
    from trisense.prompt import Processor

    model = AutoModelForImageTextToText.from_pretrained(made / "model").eval()
    processor, recipe = Processor.from_folder(made / "model"), small()
    assert processor.audio
    bank = Bank(made / "bank", 40, 60, 0, 96, processor.audio)
    features = frozen_features(model, processor, bank, made / "features.npz")
    answer = recipe.stages["answer"]
    assert isinstance(answer, WorldStage)
    feed = Feed(bank, features, answer.contexts, seed=0)
    numbers = list(range(60))  # conversations of the training, of which some are known
    right: dict[str, list[bool]] = {}
    for conversation, questions in (one for number in numbers for one in feed.conversations(number)):
        prompt = featured(conversation, processor)
        starts = np.flatnonzero(prompt.mask & ~np.roll(prompt.mask, 1))
        for question, start in zip(questions, starts, strict=True):
            media = {
                "image_features": [v for s, v in zip(prompt.media, prompt.values) if s.sense == "image"],
                "audio_features": [v for s, v in zip(prompt.media, prompt.values) if s.sense == "audio"],
            }
            given = {name: torch.from_numpy(np.stack(v).astype(np.float32)) for name, v in media.items() if v}
            ids = torch.from_numpy(prompt.ids[None, :start])
            said = model.generate(ids, **given, max_new_tokens=40, do_sample=False)[0, start:].tolist()
            exact = said[-1] in processor.end_ids and processor.tokenizer.decode(said).strip() == question.answer
            row = "none" if not question.senses else (question.senses[0], "two", "three")[len(question.senses) - 1]
            right.setdefault(row, []).append(exact)
            right.setdefault("all", []).append(exact)
    expected = {row: sum(hits) / len(hits) for row, hits in right.items()}
    assert 0 < expected["all"] < 1, "a model that is always or never right would show nothing"
    assert answer_accuracy(model, processor, feed, numbers) == pytest.approx(expected)

    first = next(number for number in numbers if feed.questions(number))
    empty = next(number for number in range(500) if not feed.questions(number))
    (shown,) = answer_samples(model, processor, feed, [empty, first])
    question = feed.questions(first)[0]
    assert (shown.question, shown.truth) == (question.text, question.answer) and shown.said
    assert np.array_equal(features.images[3], frozen_features(model, processor, bank, made / "features.npz").images[3])
    with torch.inference_mode():
        fresh = frozen_features(model, processor, bank, made / "again.npz")
    assert np.array_equal(fresh.audios, features.audios) and np.array_equal(fresh.images, features.images)
    (made / "again.npz").unlink()
    assert np.array_equal(features.offsets, np.load(made / "features.npz")["offsets"])
    for index in (0, 31, 59):
        assert len(features.audio(index)) == processor.audio.num_tokens(len(bank.mel(index)))


def test_the_recipe_s_senses_name_what_the_stages_teach() -> None:
    """As many classes as there are kinds, colours, .. and tokens; as many tokens of a picture as cells and summary."""
    design = read("spark").design
    image, audio = design.senses["image"], design.senses["audio"]
    assert list(read("spark").stages) == ["read_one", "read", "read_steps", "see", "hear", "answer"]
    tokens = design.vocabulary + 1
    assert image["classes"] == [*(len(classes) + 1 for classes in CELL.values()), tokens]
    assert audio["classes"] == [tokens]
    assert design.pictures and design.pictures.tokens == 36 + image["summary"]
    tokenizer = train_tokenizer(["a red cup"], design)
    model = build_model(design, build_processor(design, tokenizer))
    assert See(sense_of(model, "image")).naming.classes == image["classes"]
    assert Hear(sense_of(model, "audio"), tokenizer.size).head.out_features == tokens
    assert sense_of(model, "image").encode(torch.zeros(1, 3, 96, 96)).shape == (1, design.pictures.tokens, 256)


@pytest.mark.parametrize("along", [False, True])
def test_before_it_answers_projectors_are_given_the_words_as_they_are_then(
    along: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the words stay, and the projectors too, unless the stage gives them a rate of their own."""
    recipe = small("stages.answer.lrs={projector: 1.0e-4}" if along else "stages.answer.lrs={}")
    processor = build_processor(recipe.design, train_tokenizer(world_texts(0, 50), recipe.design))
    model, seen = build_model(recipe.design, processor), []
    unused: Any = None
    run = Run(recipe, processor, unused, None, model, unused, tmp_path, unused, 0, None, {})
    vars(run)["features"] = None  # of a bank that this test has none of
    monkeypatch.setattr(spark, "_converse", lambda run, learner, *rest: seen.append(learner))
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        words.add_(1)  # as `read` has left them
    stage = recipe.stages["answer"]
    assert isinstance(stage, WorldStage)
    spark._answer(run, stage, tmp_path)
    assert seen == [model]
    ear: Any = sense_of(model, "audio").projector
    cup, then = processor.tokenizer.plain("cup")[0], words.detach().clone()
    assert torch.equal(ear.words.weight[:, cup], then[cup]) and not ear.rest.weight.any()
    learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
    projectors = {name for name, _ in model.named_parameters() if ".projector." in name and name.startswith("senses.")}
    assert {name for name in learns if name.startswith("senses.")} == (projectors if along else set())
    assert any(name.startswith("language_model.") for name in learns) and not words.requires_grad
    with torch.no_grad():
        words.add_(1)
    spark._answer(run, stage, tmp_path)
    assert torch.equal(ear.words.weight[:, cup], then[cup]), "once: what they learn after that is theirs"


def test_a_quarter_of_a_small_bank_is_held_back() -> None:
    assert held_back(60_000, "pictures")[0] == 59_488
    pool, held = held_back(40, "pictures")
    assert (pool, held.tolist()) == (30, list(range(30, 40)))
    pool, held = held_back(4, "utterances")
    assert (pool, held.tolist()) == (3, [3])
    with pytest.raises(BadInput, match=r"world\.utterances=3: too few"):
        held_back(3, "utterances")


def test_the_tokenizer_reads_every_word_of_the_world() -> None:
    texts = list(world_texts(0, 40))
    assert texts == list(world_texts(0, 40))
    assert texts != list(world_texts(1, 40))
    assert len(texts) > 40 * 8
    assert any(text.startswith("What") for text in texts) and any(text in ("yes", "no") for text in texts)
