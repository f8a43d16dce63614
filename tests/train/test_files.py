"""Stages on files of conversations: tiny Phi and Phi-3 models with a tiny CLIP, in real format, learn and are saved."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image as Pictures
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from trisense.assistant.assistant import Assistant
from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.data.batches import collate, pack
from trisense.data.sources import open_source
from trisense.data.transcripts import transcripts
from trisense.data.world.samples import write
from trisense.errors import BadInput
from trisense.model.attention import SEGMENTS
from trisense.model.pretrained import load_design, load_processor
from trisense.model.trained import load_trained, put_trained, read_recipe, staged
from trisense.prompt import fan, featured
from trisense.recipe import Recipe, read
from trisense.stage import FileStage, ScheduledSampling
from trisense.train import files
from trisense.train.files import get_ready, train_stage
from trisense.train.learner import Learner
from trisense.train.processes import Processes
from trisense.train.samples import Samples, media_in

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.pretrained(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Twenty-four plain pictures with their colour as caption (COCO) and as answer (LLaVA-Instruct)."""
    folder = tmp_path_factory.mktemp("data")
    names = [f"{index:012}.png" for index in range(24)]
    colours = [list(COLOURS)[index % len(COLOURS)] for index in range(24)]
    for name, colour in zip(names, colours, strict=True):
        Pictures.new("RGB", (40, 36), COLOURS[colour]).save(folder / name)
    coco = {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "annotations": [{"image_id": index, "caption": f"all {colour}"} for index, colour in enumerate(colours)],
    }
    llava = [
        {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": "<image>\nWhich?"},
                {"from": "gpt", "value": f"It is {colour}."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": f"Yes, {colour}!"},
            ],
        }
        for name, colour in zip(names, colours, strict=True)
    ]
    files = {"caption": folder / "captions.json", "instruct": folder / "llava.json"}
    files["caption"].write_text(json.dumps(coco))
    files["instruct"].write_text(json.dumps(llava))
    return files


def recipe(name: str, parts: Path, *overrides: str) -> Recipe:
    """A packaged recipe over the tiny parts, its stages short."""
    changes = tiny_models.pretrained_overrides(name, parts)
    short = {
        "steps": 24,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_steps": 2,
        "precision": "float32",
        "optimizer": "adamw",
        "log_every": 3,
        "evaluate_every": 24,
        "save_every": 4,
    }
    for stage in read(name).stages:
        changes += [f"stages.{stage}.{key}={value}" for key, value in short.items()]
    if name == "tinyclip-phi2":
        changes.append("stages.instruct.lrs.projector=1e-2")
    return read(name, [*changes, *overrides])


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["context-gpt", "tinyclip-phi2", "jnana", "ft35", "eden"])
def test_every_recipe_goes_through_its_stages(name: str, parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe(name, parts)
    after = None
    for stage, options in tiny.stages.items():
        assert isinstance(options, FileStage)
        trained = train_stage(tiny, stage, data[options.learns], tmp_path, device="cpu")
        first, *_, last = losses(tmp_path / stage)
        assert last < 0.95 * first, f"{stage}: {first} -> {last}"
        assert (trained / "projector" / "image.safetensors").exists()
        assert (trained / "adapter").exists() == (options.learns == "instruct")
        after = trained
    assert after
    model, _ = load_trained(after)
    language = "phi3" if name in tiny_models.PHI3 else "phi"
    for file, part in (("clip", model.senses["image"].encoder), (language, model.language_model)):
        kind: Any = type(part)
        untouched = dict(kind.from_pretrained(parts / file, dtype=torch.float32).named_parameters())
        now = {key.replace(".base_layer", ""): p for key, p in part.named_parameters() if ".lora_" not in key}
        assert set(now) == set(untouched)
        assert all(torch.equal(now[key], untouched[key]) for key in now), "what is frozen is what it was, to the bit"
    assert read_recipe(after) == (tiny, list(tiny.stages)[-1])
    picture = data["caption"].parent / "000000000000.png"
    assistant = Assistant.from_pretrained(after, "cpu")
    assert assistant.answer(Conversation.ask("Which?", images=[picture]), max_new_tokens=9).text


def test_an_adapter_learns_alone_beside_projectors_that_are_kept(parts: Path, data: dict[str, Path], tmp_path: Path):
    kept = ["stages.instruct.freeze_projector=true", "stages.align.steps=2", "stages.instruct.steps=6"]
    tiny = recipe("context-gpt", parts, *kept)
    before = train_stage(tiny, "align", data["caption"], tmp_path, device="cpu")
    after = train_stage(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    projector = "projector/image.safetensors"
    assert (after / projector).read_bytes() == (before / projector).read_bytes()
    adapter = load_file(after / "adapter" / "adapter_model.safetensors")
    assert all(value.abs().sum() > 0 for name, value in adapter.items() if "lora_B" in name), "they begin as zeros"
    with pytest.raises(BadInput, match="nothing learns"):
        still = recipe("context-gpt", parts, "stages.align.freeze_projector=true")
        train_stage(still, "align", data["caption"], tmp_path / "still", device="cpu")


def test_features_belong_to_the_weights_that_made_them(parts: Path, data: dict[str, Path], tmp_path: Path):
    """Under another name the same encoder's are used again, under the same name another encoder's are made anew."""
    moved = tmp_path / "moved"
    shutil.copytree(parts / "clip", moved)
    tiny = recipe("eden", parts, "stages.instruct.steps=1")
    elsewhere = recipe("eden", parts, "stages.instruct.steps=1", f"design.vision.pretrained={moved}")
    features = tmp_path / "run" / "features" / "image.0.f16"

    def made(with_parts: Recipe) -> tuple[int, bytes]:
        get_ready(with_parts, "instruct", data["instruct"], tmp_path / "run", device="cpu")
        return features.stat().st_mtime_ns, features.read_bytes()

    first = made(tiny)
    assert made(elsewhere) == first
    encoder = CLIPVisionModelWithProjection.from_pretrained(moved)
    with torch.no_grad():
        encoder.visual_projection.weight.mul_(2)
    encoder.save_pretrained(moved)
    assert made(elsewhere)[1] != first[1]


def test_a_stopped_stage_goes_on_and_ends_the_same(parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe("eden", parts, "stages.instruct.steps=8")
    whole = train_stage(tiny, "instruct", data["instruct"], tmp_path / "whole", device="cpu")
    out = tmp_path / "stopped"
    train_stage(tiny, "instruct", data["instruct"], out, device="cpu")
    state = torch.load(out / "instruct" / "checkpoint.pt", weights_only=True)
    assert all(".projector." in key or ".lora_" in key for key in state["model"]), "only what learns is saved"
    with pytest.raises(BadInput, match="this run began with another data"):
        train_stage(tiny, "instruct", data["caption"], out, device="cpu")
    other = recipe("eden", parts, "stages.instruct.steps=8", "design.adapter.alpha=3")
    with pytest.raises(BadInput, match="this run began with another design"):
        train_stage(other, "instruct", data["instruct"], out, device="cpu")
    again = train_stage(tiny, "instruct", data["instruct"], out, device="cpu")
    for file in ("projector/image.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole / file).read_bytes() == (again / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "stage", "packing"),
    [
        ("context-gpt", "align", "{tokens: 90}"),
        ("jnana", "align", "{tokens: 90, share: false}"),
        ("tinyclip-phi2", "align", "{tokens: 90}"),
        ("eden", "instruct", "{tokens: 400}"),
    ],
)
def test_a_stage_on_packed_rows_learns_and_goes_on_where_it_was_stopped(
    name: str, stage: str, packing: str, parts: Path, data: dict[str, Path], tmp_path: Path
):
    options = [f"stages.{stage}.packing={packing}", f"stages.{stage}.steps=12", f"stages.{stage}.accumulate=2"]
    if name == "tinyclip-phi2":
        options += ["stages.align.scheduled_sampling.after=0", "stages.align.answers.longest_tokens=9"]
    tiny = recipe(name, parts, *options)
    file = data["caption" if stage == "align" else "instruct"]
    whole = train_stage(tiny, stage, file, tmp_path / "whole", device="cpu")
    first, *_, last = losses(tmp_path / "whole" / stage)
    assert last < 0.95 * first
    out = tmp_path / "stopped"
    with monkey_stop(after=7), pytest.raises(KeyboardInterrupt):
        train_stage(tiny, stage, file, out, device="cpu")
    again = train_stage(tiny, stage, file, out, device="cpu")
    for path in sorted(whole.rglob("*.safetensors")):
        assert path.read_bytes() == (again / path.relative_to(whole)).read_bytes()
    with pytest.raises(BadInput, match="was trained with packing"):
        other = recipe(name, parts, *options, f"stages.{stage}.packing.tokens=91")
        train_stage(other, stage, file, out, device="cpu")


@contextmanager
def monkey_stop(after: int) -> Iterator[None]:
    """Ctrl-C in the batch that follows `after` others."""
    real, seen = Learner.forward, 0

    def counted(self: Learner, *arguments: Any, **inputs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == after:
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "forward", counted)
        yield


def test_packed_rows_hold_what_is_about_one_picture_and_frozen_parts_get_no_gradient(
    parts: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = recipe("eden", parts, "stages.instruct.packing={tokens: 2000}", "stages.instruct.steps=1")
    inputs: list[dict[str, torch.Tensor]] = []
    left: list[Learner] = []
    real = Learner.forward

    def watched(self: Learner, own_words: Any = None, **given: Any) -> Any:
        inputs.append(given)
        left.append(self)
        for name, parameter in self.named_parameters():
            learns = ".projector." in name or ".lora_" in name
            assert parameter.requires_grad == learns
        return real(self, own_words=own_words, **given)

    monkeypatch.setattr(Learner, "forward", watched)
    train_stage(tiny, "instruct", data["instruct"], tmp_path, device="cpu", doctor=False)
    (row,) = inputs
    # 48 questions about 24 pictures, of which 4 questions were kept from training.
    assert len(row["image_features"]) < int((row["branches"] > 0).any()) + 24
    assert int(row["segments"].max()) + 1 == len(row["image_features"])
    assert (row["branches"] == 2).any(), "two questions about one picture share it"
    assert not any(True for _ in left[0].model.senses["image"].encoder.parameters()), "the encoder has done its work"


def test_buckets_and_packing_are_two_ways_to_batch(parts: Path):
    with pytest.raises(BadInput, match=r"stages.instruct.packing: buckets are batches too; set buckets=null"):
        recipe("jnana", parts, "stages.instruct.packing={tokens: 64}")
    assert recipe("jnana", parts, "stages.instruct.packing={tokens: 64}", "stages.instruct.buckets=null")


def test_own_words_in_a_fan_are_those_of_each_sample_alone(parts: Path):
    model, processor = load_design(staged(recipe("tinyclip-phi2", parts), "align"))
    features = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    picture = Conversation(messages=(Message(role="user", content=(Image(image=features),)),))
    prompts = [featured(picture.answered(text), processor) for text in ("a long red caption", "short one", "a rose")]
    learner = Learner(model, sampling=ScheduledSampling(first=2))
    with torch.inference_mode():
        packed = pack([[fan(prompts), prompts[1]]])
        together = learner(**packed.inputs, num_items_in_batch=1, own_words=torch.tensor(True)).loss
        alone = [collate([one]).inputs for one in (*prompts, prompts[1])]
        apart = [learner(**one, num_items_in_batch=1, own_words=torch.tensor(True)).loss for one in alone]
        truth = [learner(**one, num_items_in_batch=1).loss for one in alone]
    assert float(together) == pytest.approx(float(sum(apart)), rel=1e-5)
    assert abs(float(sum(truth)) - float(together)) > 1e-2


def test_scheduled_sampling_feeds_the_models_own_words(parts: Path):
    """Against a loop that looks for what the model finds likeliest, one place after the other."""
    tiny = recipe("tinyclip-phi2", parts)
    torch.manual_seed(5)
    model, processor = load_design(staged(tiny, "align"))
    prompts = []
    for index, text in enumerate(("a long red caption", "short one")):
        features = np.random.default_rng(index).normal(size=(4, 16)).astype(np.float32)
        picture = Conversation(messages=(Message(role="user", content=(Image(image=features),)),))
        prompts.append(featured(picture.answered(text), processor))
    inputs = collate(prompts).inputs
    labels = inputs["labels"]
    expected = inputs["input_ids"].clone()
    with torch.inference_mode():
        for row in range(2):
            places = [place for place in range(labels.shape[1]) if labels[row, place] != -100]
            for place in places[3:]:
                logits = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits[
                    row, place - 1
                ]
                logits[269] = -torch.inf
                expected[row, place] = logits.argmax()
        assert not torch.equal(expected, inputs["input_ids"])
        own = model(**{**inputs, "input_ids": expected}).loss
        truth = model(**inputs).loss
        learner = Learner(model, sampling=ScheduledSampling(first=3))
        assert learner(**inputs, own_words=torch.tensor(True)).loss == own
        assert learner(**inputs, own_words=torch.tensor(False)).loss == truth
        assert own != truth


def test_which_samples_are_learned_and_when_the_models_words_begin(
    parts: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = ["stages.align.answers.longest_tokens=9", "stages.align.steps=5", "stages.align.accumulate=2"]
    tiny = recipe("tinyclip-phi2", parts, *short)
    fed: list[bool] = []
    real = Learner.forward

    def watched(self: Learner, own_words: Any = None, **inputs: Any) -> Any:
        fed.append(bool(own_words))
        longest = int((inputs["labels"] != -100).sum(1).max())
        assert longest <= 9 + 1, "the caption and its end"
        return real(self, own_words=own_words, **inputs)

    monkeypatch.setattr(Learner, "forward", watched)
    train_stage(tiny, "align", data["caption"], tmp_path / "run", device="cpu", doctor=False)
    assert fed == [False] * 6 + [True] * 4, "after 60 % of the steps"
    with pytest.raises(BadInput, match="0 samples that this stage can use"):
        none = recipe("tinyclip-phi2", parts, "stages.align.answers.longest_tokens=1")
        train_stage(none, "align", data["caption"], tmp_path / "none", device="cpu")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of the small world with a voice, a note or a picture: a jsonl file with its media beside it."""
    folder = tmp_path_factory.mktemp("spoken")
    write(folder, 36, seed=4)
    return folder / "samples.jsonl"


def test_a_design_without_ears_learns_from_transcripts(parts: Path, spoken: Path, tmp_path: Path):
    tiny = recipe("eden", parts, "answering.speech.pretrained=spark", "stages.instruct.steps=2")
    trained = train_stage(tiny, "instruct", spoken, tmp_path, device="cpu")
    assert not (trained / "projector" / "audio.safetensors").exists()
    speech = tiny.answering.speech
    assert speech
    source = open_source(spoken)
    heard = transcripts(media_in(source)["audio"], speech, "cpu", tmp_path)
    stage = tiny.stages["instruct"]
    assert isinstance(stage, FileStage)
    samples = Samples.of(source, stage, load_processor(tiny.design), 0, 512, transcripts=heard)
    records = [json.loads(line) for line in spoken.read_text().splitlines()]
    right = 0
    for index in (*samples.pool, *samples.held):
        asked = samples.conversation(index).messages[0].content
        said = records[index].get("said")
        assert asked[-1] == Text(text=records[index]["question"])
        assert not any(isinstance(part, Audio) for part in asked)
        right += said is not None and Text(text=said) in asked
    assert right > 0.8 * sum("said" in record for record in records), "spark hears its own world"
    deaf = recipe("eden", parts, "answering.speech=null")
    with pytest.raises(BadInput, match=r"shows \S+\.wav, and this design has no ears, and its recipe names no Whisper"):
        train_stage(deaf, "instruct", spoken, tmp_path / "deaf", device="cpu")


def test_sounds_through_whispers_encoder_without_a_transcript(parts: Path, spoken: Path, tmp_path: Path):
    whisper = tiny_models.whisper()
    ears = [
        "audio=embed",
        f"ears.audio.pretrained={whisper}",
        "ears.sense.width=128",
        "ears.placeholder=268",
        "design.layout.audio=['<sound>', '</sound>']",
    ]
    tiny = recipe("jnana", parts, *ears, "stages.instruct.buckets=null", "stages.instruct.batch_size=2")
    from transformers import WhisperModel

    # Its 188 places a sound and the words around them.
    trained = train_stage(tiny, "align", spoken.with_name("captions.jsonl"), tmp_path, device="cpu")
    trained = train_stage(tiny, "instruct", spoken, tmp_path, device="cpu")
    first, *_, last = losses(tmp_path / "instruct")
    assert last < 0.95 * first
    assert (trained / "projector" / "audio.safetensors").exists()
    model, processor = load_trained(trained)
    untouched = dict(WhisperModel.from_pretrained(whisper).encoder.named_parameters())
    now = dict(model.senses["audio"].encoder.named_parameters())
    assert set(now) == set(untouched)
    assert all(torch.equal(now[key], untouched[key]) for key in now)
    assert processor.audio and processor.audio.num_tokens(3000) == 188
    voice = next(spoken.parent.glob("*.wav"))
    assistant = Assistant.from_pretrained(trained, "cpu")
    answer = assistant.answer(Conversation.ask("What is said?", audios=[voice]), max_new_tokens=3)
    assert answer.prompt_tokens > 188 and answer.transcripts == ()
    with pytest.raises(BadInput, match=r"trained with design\.audio="):
        put_trained(load_design(recipe("jnana", parts).design)[0], recipe("jnana", parts), trained)


@cache
def _trained(parts: Path, data: Path, folder: Path) -> Path:
    return train_stage(recipe("eden", parts, "stages.instruct.steps=2"), "instruct", data, folder, device="cpu")


def test_what_does_not_fit_is_one_line_that_names_it(
    parts: Path, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
):
    trained = _trained(parts, data["instruct"], tmp_path_factory.getbasetemp() / "eden")

    def refusal(*overrides: str, name: str = "eden", stage: str = "instruct", file: Path = data["instruct"]) -> str:
        with pytest.raises(BadInput) as refused:
            train_stage(recipe(name, parts, *overrides), stage, file, tmp_path / "out", after=trained, device="cpu")
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "has no stage 'align' that learns from files; it has instruct" in refusal(stage="align")
    other = refusal("design.senses.image.projector=mlp")
    assert "trained with design.senses.image.projector=norm-mlp, now mlp" in other
    assert "trained with design.senses.image.layer=None, now -2" in refusal(name="context-gpt")
    assert "'/nowhere/at/all' is neither a folder" in refusal("design.vision.pretrained=/nowhere/at/all")
    with pytest.raises(BadInput, match=r"train the stage align into .* first, or name trained parts with --after"):
        train_stage(recipe("jnana", parts), "instruct", data["instruct"], tmp_path / "out", device="cpu")
    assert "nowhere.json: cannot be read" in refusal(file=Path("nowhere.json"))


class Two(Processes):
    """The first of two processes, of which the other never waits and has what this one has."""

    def wait(self) -> None: ...

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


@pytest.mark.parametrize("buckets", ["null", "{64: 4}"])
def test_rounds_learn_from_disjoint_subsets_that_together_are_the_pool(
    buckets: str, parts: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By what the model is really fed: which samples, in the steps of which round."""
    rounds = ["rounds=3", "steps=12", "accumulate=2", "batch_size=4", f"buckets={buckets}", "warmup_steps=1"]
    tiny = recipe("eden", parts, *(f"stages.instruct.{option}" for option in rounds))
    ready = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    fed: list[list[int]] = []
    real = Samples.prompt

    def watched(self: Samples, index: int, *rest: Any) -> Any:
        fed[-1].append(index)
        return real(self, index, *rest)

    monkeypatch.setattr(Samples, "prompt", watched)
    numbers = range(12 * 2)
    for _ in range(3):
        fed.append([])
        first = len(fed) - 1
        for number in numbers[first * 8 : (first + 1) * 8]:
            ready.batch_at(number)
    pool = set(ready.samples.pool)
    assert set().union(*fed) == pool
    assert sum(len(set(one)) for one in fed) == len(pool) == 44, "no sample in two rounds"
    for round_ in fed:
        epoch = len(set(round_))
        assert epoch in (14, 15)
        assert len(set(round_[:epoch])) == epoch, "once before any comes again"
    assert sorted(one for part in ready.samples.rounds() for one in part.pool) == ready.samples.pool
    for part in ready.samples.rounds():
        assert sorted(part.learned(n) for n in range(len(part.pool))) == part.pool
    batches = [ready.batch_at(number).inputs["input_ids"] for number in (9, 8, 23)]
    with monkeypatch.context() as two:
        two.setattr(files, "join_processes", lambda device: Two(0, 2, torch.device("cpu"), "gloo"))
        wide = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu").batch_at
    apart = [torch.equal(wide(16 + n).inputs["input_ids"], ready.batch_at(8 + n).inputs["input_ids"]) for n in range(4)]
    assert all(apart), "of two processes a step takes twice as many batches, and a round begins with a step"
    again = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    assert all(torch.equal(again.batch_at(n).inputs["input_ids"], b) for n, b in zip((9, 8, 23), batches, strict=True))


def test_a_stage_in_rounds_goes_on_within_one_and_ends_the_same(parts: Path, data: dict[str, Path], tmp_path: Path):
    options = ["rounds=2", "steps=8", "save_every=1", "log_every=1", "warmup_steps=1"]
    tiny = recipe("eden", parts, *(f"stages.instruct.{option}" for option in options))
    whole = train_stage(tiny, "instruct", data["instruct"], tmp_path / "whole", device="cpu")
    rates = [json.loads(line)["lr"] for line in (tmp_path / "whole/instruct/log.jsonl").open() if '"lr"' in line]
    assert rates[:3] == rates[4:7] and rates[3] == 1e-2 > rates[2], "a warm restart after the fourth step"
    real = Learner.forward

    def broken(self: Learner, **inputs: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            steps.append(0)
            if len(steps) == 6:
                raise OSError("disk gone")
        return real(self, **inputs)

    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="disk gone"):
        patch.setattr(Learner, "forward", broken)
        train_stage(tiny, "instruct", data["instruct"], tmp_path / "stopped", device="cpu")
    assert torch.load(tmp_path / "stopped/instruct/checkpoint.pt", weights_only=True)["step"] == 5, "in round two"
    again = train_stage(tiny, "instruct", data["instruct"], tmp_path / "stopped", device="cpu")
    for file in ("projector/image.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole / file).read_bytes() == (again / file).read_bytes()
    assert losses(tmp_path / "whole/instruct") == losses(tmp_path / "stopped/instruct")
    with pytest.raises(BadInput, match="rounds: 50, but only 44 samples to learn from"):
        many = recipe("eden", parts, "stages.instruct.rounds=50", "stages.instruct.steps=200")
        train_stage(many, "instruct", data["instruct"], tmp_path / "many", device="cpu")


@pytest.mark.parametrize(
    ("compile", "checkpointing", "attention"),
    [(False, False, SEGMENTS), (True, False, SEGMENTS), (False, True, SEGMENTS), (True, True, "sdpa")],
)
def test_attention_in_pieces_makes_way_where_blocks_are_compiled_and_computed_again(
    compile: bool, checkpointing: bool, attention: str, parts: Path, data: dict[str, Path], tmp_path: Path
):
    """A block that is computed again is compiled as a whole or not at all."""
    options = ["packing={tokens: 400}", f"compile={compile}", f"gradient_checkpointing={checkpointing}"]
    tiny = recipe("eden", parts, *(f"stages.instruct.{option}" for option in options))
    ready = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    assert ready.learner.model.language_model.config._attn_implementation == attention
