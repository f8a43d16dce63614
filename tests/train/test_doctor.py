"""The doctor: everything broken on purpose is caught by its own check, and nothing that is well is called wrong."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image as Pictures

from trisense.cli import main
from trisense.data import batches
from trisense.data.batches import Batch, collate
from trisense.errors import BadInput
from trisense.prompt import Prompt, fan
from trisense.recipe import Recipe, read
from trisense.stage import FileStage
from trisense.train import doctor
from trisense.train.doctor import CHECKS, admit, examine
from trisense.train.files import Ready, get_ready, train_stage
from trisense.train.learner import Learner
from trisense.train.reference import branches, plain_loss

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "dark blue": (20, 20, 220), "white": (250, 250, 250)}
SHORT = {
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 1,
    "precision": "float32",
    "optimizer": "adamw",
    "log_every": 1,
    "evaluate_every": 2,
}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.pretrained(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain pictures with their colour as caption (COCO) and as answer (LLaVA-Instruct), of different lengths."""
    folder = tmp_path_factory.mktemp("data")
    coco: dict[str, list[Any]] = {"images": [], "annotations": []}
    llava = []
    for index in range(24):
        name, colour = f"{index:012}.png", list(COLOURS)[index % len(COLOURS)]
        Pictures.new("RGB", (40, 36), COLOURS[colour]).save(folder / name)
        coco["images"].append({"id": index, "file_name": name})
        coco["annotations"].append({"image_id": index, "caption": f"all {colour}"})
        asked, sure = ("human", "<image>\nWhich?"), ("human", "Sure?")
        said = [asked, ("gpt", f"It is {colour}."), sure, ("gpt", f"Yes, {colour}!")]
        turns = [{"from": who, "value": text} for who, text in said]
        llava.append({"id": name, "image": name, "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(coco))
    (folder / "llava.json").write_text(json.dumps(llava))
    return {"caption": folder / "captions.json", "instruct": folder / "llava.json"}


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and sounds together, two sounds in some samples, of different lengths."""
    folder, lines = tmp_path_factory.mktemp("spoken"), []
    for index in range(24):
        Pictures.new("RGB", (40, 36), list(COLOURS.values())[index % 4]).save(folder / f"{index}.png")
        content: list[dict[str, Any]] = [{"type": "image", "image": f"{index}.png"}]
        for number in range(1 + index % 2):
            name = f"{index}-{number}.wav"
            tiny_models.sound_file(folder / name, index, 0.5 + 0.1 * index)
            content.append({"type": "audio", "audio": name})
        content.append({"type": "text", "text": "Which?"})
        answer = {"role": "assistant", "content": [{"type": "text", "text": f"number {index}"}]}
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return folder / "samples.jsonl"


def recipe(name: str, parts: Path, *overrides: str) -> Recipe:
    changes = tiny_models.pretrained_overrides(name, parts)
    changes += [f"stages.{stage}.{key}={value}" for stage in read(name).stages for key, value in SHORT.items()]
    return read(name, [*changes, *overrides])


def only(recipe: Recipe, stage: str) -> Recipe:
    """A recipe without the stages before, so that none has to be trained."""
    return recipe.model_copy(update={"stages": {stage: recipe.stages[stage]}})


def hearing(parts: Path) -> Recipe:
    """A recipe with eyes and ears."""
    ears = [
        "audio=embed",
        f"ears.audio.pretrained={tiny_models.whisper()}",
        "ears.sense.width=128",
        "ears.placeholder=268",
        "design.layout.audio=['<sound>', '</sound>']",
        "stages.instruct.buckets=null",
    ]
    return only(recipe("jnana", parts, *ears), "instruct")


def wrong(ready: Ready) -> list[str]:
    return [check.name for check in examine(ready) if not check.ok]


STAGES = [(n, s) for n in ("context-gpt", "tinyclip-phi2", "jnana", "ft35", "eden") for s in read(n).stages]


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_good_recipes_raise_no_alarm(name: str, stage: str, parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = only(recipe(name, parts), stage)
    options = tiny.stages[stage]
    assert isinstance(options, FileStage)
    ready = get_ready(tiny, stage, data[options.learns], tmp_path, device="cpu")
    for check in examine(ready):
        assert check.ok, check
    line = admit(ready)
    assert line.startswith(f"doctor: {len(CHECKS)} checks passed; image vectors are ") and "\n" not in line


@pytest.mark.parametrize(
    "option",
    [
        "label_smoothing=0.1",
        "scheduled_sampling={after: 0}",
        "rounds=2",
        "packing={tokens: 300}",
        "packing={tokens: 300, share: false}",
        "freeze_projector=true",
        "turns=false",
        "answers.stop_words=false",
    ],
)
def test_no_alarm_whatever_a_stage_may_have(option: str, parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe("eden", parts, f"stages.instruct.{option}", "stages.instruct.steps=8")
    assert wrong(get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")) == []


def test_no_alarm_with_ears(parts: Path, spoken: Path, tmp_path: Path):
    ready = get_ready(hearing(parts), "instruct", spoken, tmp_path, device="cpu")
    assert {slot.sense for prompt in ready.held for slot in prompt.media} == {"image", "audio"}
    assert all(check.ok for check in examine(ready))
    assert "audio vectors are" in admit(ready)
    ready.learner.model.senses["audio"].projector.requires_grad_(False)
    assert wrong(ready) == ["frozen"]


def test_no_alarm_from_a_twin_on_sparks_parts(data: dict[str, Path], tmp_path: Path):
    options = [f"stages.instruct.{key}={value}" for key, value in SHORT.items()]
    ready = get_ready(read("eden@spark", options), "instruct", data["instruct"], tmp_path, device="cpu")
    for check in examine(ready):
        assert check.ok, check


# What is broken, each in its own way: what is done to a stage before its first step -> the checks that say so, of which
# the first is its own and the others follow from it.
Break = Callable[[Ready], Ready]


def prompts(change: Callable[[Prompt], Prompt]) -> Break:
    """As if samples were rendered otherwise, everywhere."""

    def broken(ready: Ready) -> Ready:
        def batch_at(number: int) -> Batch:
            return collate([change(prompt) for prompt in ready.batch_at(number).prompts])

        return replace(ready, prompt_of=lambda index: change(ready.prompt_of(index)), batch_at=batch_at)

    return broken


def labels(change: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> Break:
    """As if batches were made otherwise, of the same samples."""

    def broken(ready: Ready) -> Ready:
        def batch_at(number: int) -> Batch:
            batch = ready.batch_at(number)
            changed = change({name: value.clone() for name, value in batch.inputs.items()})
            items = int((changed[:, 1:] != -100).sum())
            return replace(batch, inputs={**batch.inputs, "labels": changed}, items=items)

        return replace(ready, batch_at=batch_at)

    return broken


def model(change: Callable[[Any], Any]) -> Break:
    def broken(ready: Ready) -> Ready:
        change(ready.learner.model)
        return ready

    return broken


def _no_end(prompt: Prompt) -> Prompt:
    mask = prompt.mask.copy()
    mask[-1] = False
    return replace(prompt, mask=mask)


def _late(prompt: Prompt) -> Prompt:
    mask = prompt.mask.copy()
    mask[np.flatnonzero(mask)[0]] = False
    return replace(prompt, mask=mask)


def _shifted(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a program does that shifts, and whose model shifts again."""
    return torch.cat([inputs["labels"][:, 1:], torch.full_like(inputs["labels"][:, :1], -100)], 1)


def _with_padding(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs["labels"].masked_fill(inputs["attention_mask"] == 0, 0)


def _everything(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)


def _two(ready: Ready, broken: Callable[[Batch], Batch]) -> Ready:
    return replace(ready, batch_at=lambda number: broken(ready.batch_at(number)))


def _scaled(model: Any) -> None:
    last = model.senses["image"].projector[-1]
    with torch.no_grad():
        last.weight.mul_(1e4)


def _dead(model: Any) -> None:
    last = model.senses["image"].projector[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()


def _short(model: Any) -> None:
    model.config.text_config.max_position_embeddings = 40


def _no_adapter(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.requires_grad_(False)


BREAKS: dict[str, tuple[Break, list[str]]] = {
    "an empty mask": (
        prompts(lambda p: replace(p, mask=np.zeros_like(p.mask))),
        ["supervised", "whole", "prefix"],
    ),
    "answers whose end is not learned": (prompts(_no_end), ["end"]),
    "answers whose first token is not learned": (prompts(_late), ["whole", "prefix"]),
    "answers cut": (
        prompts(lambda p: replace(p, ids=p.ids[:-4], mask=p.mask[:-4])),
        ["end", "whole"],
    ),
    "samples longer than the context": (model(_short), ["whole"]),
    "another layout when answering": (
        lambda ready: replace(
            ready,
            processor=replace(ready.processor, layout=ready.processor.layout.model_copy(update={"start": "Hi "})),
        ),
        ["prefix"],
    ),
    "padding in the loss": (labels(_with_padding), ["pad", "loss"]),
    "questions in the loss": (labels(_everything), ["pad", "loss"]),
    "labels shifted in collate": (labels(_shifted), ["loss"]),
    "items counted wrong": (lambda ready: _two(ready, lambda b: replace(b, items=2 * b.items)), ["loss"]),
    "pictures in another order": (
        lambda ready: _two(
            ready, lambda b: replace(b, inputs={**b.inputs, "image_features": b.inputs["image_features"].roll(1, 0)})
        ),
        ["loss"],
    ),
    "a batch that does not say of what": (lambda ready: _two(ready, lambda b: replace(b, prompts=())), ["pad", "loss"]),
    "features with nan": (
        prompts(lambda p: replace(p, values=tuple(np.full_like(v, np.nan) for v in p.values))),
        ["features", "norms", "loss"],
    ),
    "a projector scaled by 1e4": (model(_scaled), ["norms"]),
    "a projector that gives nothing": (model(_dead), ["norms"]),
    "an encoder that could learn": (
        model(lambda m: setattr(m.senses["image"], "encoder", torch.nn.Linear(3, 3))),  # its own has done its work
        ["frozen"],
    ),
    "a language model left trainable": (model(lambda m: m.language_model.requires_grad_(True)), ["frozen"]),
    "a projector that is frozen": (model(lambda m: m.senses["image"].projector.requires_grad_(False)), ["frozen"]),
    "an adapter that is frozen": (model(_no_adapter), ["frozen"]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_caught_by_its_own_check(what: str, parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe("eden", parts, "stages.instruct.buckets={64: 6}")  # of any length together, so that there is padding
    ready = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    assert wrong(ready) == []
    broken, expected = BREAKS[what]
    ready = broken(ready)
    assert wrong(ready) == expected
    with pytest.raises(BadInput, match=rf"^doctor: {expected[0]} is WRONG: \S") as refused:
        admit(ready)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", ["true", "false"])
def test_packed_samples_that_see_each_other_are_caught(share: str, parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe("eden", parts, f"stages.instruct.packing={{tokens: 300, share: {share}}}")
    ready = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    inputs = ready.batch_at(0).inputs
    assert bool((inputs["branches"] > 0).any()) == (share == "true")
    breaks: dict[str, torch.Tensor] = {
        "segments": torch.zeros_like(inputs["segments"]),
        "branches": torch.zeros_like(inputs["branches"]),
        "predicted_from": torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"]) - 2,
    }
    if share == "true":  # where none is shared, only how far apart tokens stand matters
        breaks["position_ids"] = torch.arange(inputs["position_ids"].shape[1]).expand_as(inputs["position_ids"])
    for name, values in breaks.items():
        if torch.equal(values, inputs[name]):
            continue
        broken = _two(ready, lambda b, n=name, v=values: replace(b, inputs={**b.inputs, n: v}))
        assert wrong(broken) == ["loss"], name


def test_a_projector_that_is_to_be_kept_and_learns_is_caught(parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe("eden", parts, "stages.instruct.freeze_projector=true")
    ready = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    ready.learner.model.senses["image"].projector.requires_grad_(True)
    assert wrong(ready) == ["frozen"]


def test_every_check_has_caught_something():
    assert {expected[0] for _, expected in BREAKS.values()} == set(CHECKS)


def test_a_loss_that_shifts_twice_is_caught_in_the_model_too(
    parts: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ready = get_ready(recipe("eden", parts), "instruct", data["instruct"], tmp_path, device="cpu")
    real = Learner.forward

    def twice(self: Learner, **inputs: Any) -> Any:
        return real(self, **{**inputs, "labels": _shifted(inputs)})

    monkeypatch.setattr(Learner, "forward", twice)
    assert wrong(ready) == ["loss"]


def test_a_layout_that_ends_no_answer_is_caught(parts: Path, data: dict[str, Path], tmp_path: Path):
    layout = read("eden").design.layout
    endless = layout.model_copy(update={"answer": layout.answer._replace(after="")})
    tiny = recipe("eden", parts, f"stages.instruct.layout={json.dumps(endless.model_dump(mode='json'))}")
    with pytest.raises(
        BadInput, match="doctor: end is WRONG: no token ends an answer, so it would never stop: give the"
    ):
        train_stage(tiny, "instruct", data["instruct"], tmp_path, device="cpu")


def test_a_stage_that_is_wrong_does_not_begin(
    parts: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And one where somebody says so does."""
    tiny = recipe("eden", parts)
    real = batches.collate

    def shifted(prompts: Any) -> Batch:
        batch = real(prompts)
        return replace(batch, inputs={**batch.inputs, "labels": _shifted(batch.inputs)})

    monkeypatch.setattr(batches, "collate", shifted)
    with pytest.raises(BadInput, match=r"doctor: loss is WRONG: .* shifted twice"):
        train_stage(tiny, "instruct", data["instruct"], tmp_path, device="cpu")
    assert not (tmp_path / "instruct").exists()
    assert train_stage(tiny, "instruct", data["instruct"], tmp_path, device="cpu", doctor=False).is_dir()


def test_a_run_is_the_same_to_the_bit_with_the_doctor_and_without(
    parts: Path, data: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    tiny = recipe("eden", parts)
    looked = train_stage(tiny, "instruct", data["instruct"], tmp_path / "looked", device="cpu")
    assert capfd.readouterr().out.count(f"doctor: {len(CHECKS)} checks passed") == 1
    blind = train_stage(tiny, "instruct", data["instruct"], tmp_path / "blind", device="cpu", doctor=False)
    assert "doctor" not in capfd.readouterr().out
    for file in ("projector/image.safetensors", "adapter/adapter_model.safetensors"):
        assert (looked / file).read_bytes() == (blind / file).read_bytes()
    assert (looked.parent / "log.jsonl").read_text() == (blind.parent / "log.jsonl").read_text()


def test_looking_changes_nothing(parts: Path, data: dict[str, Path], tmp_path: Path):
    ready = get_ready(recipe("eden", parts), "instruct", data["instruct"], tmp_path, device="cpu")
    learner = ready.learner
    learner.model.language_model.train()
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    modes = [module.training for module in learner.modules()]
    drawn = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    examine(ready)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert [module.training for module in learner.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (random.getstate(), str(np.random.get_state())) == drawn[1:]
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_the_plain_loss_of_a_fan_is_that_of_its_samples(parts: Path, data: dict[str, Path], tmp_path: Path):
    """And both are the loss of the model, which sees the fan as one row."""
    ready = get_ready(recipe("eden", parts), "instruct", data["instruct"], tmp_path, device="cpu")
    first, second = (ready.prompt_of(index) for index in (0, 1))
    alone = [first, replace(second, values=first.values)]
    spread = list(branches(fan(alone)))
    for one, other in zip(spread, alone, strict=True):
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.mask, other.mask)
    total = sum(plain_loss(ready.learner.model, one)[0] for one in alone)
    batch = collate([fan(alone)])
    with torch.inference_mode():
        loss = float(ready.learner(**batch.inputs, num_items_in_batch=1).loss)
    assert loss == pytest.approx(total, rel=1e-5)
    assert sum(plain_loss(ready.learner.model, one)[1] for one in spread) == batch.items


def test_the_command_shows_three_samples_and_a_line_for_every_check(
    parts: Path, data: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    overrides = [*tiny_models.pretrained_overrides("jnana", parts), "stages.instruct.batch_size=3"]
    assert main(["doctor", "jnana", str(data["caption"]), *overrides]) == 0
    out = capsys.readouterr().out
    assert out.count("[image x4]") == 3 and "«a|l|l|·" in out and "sample 0: " in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("ok  ")] == list(CHECKS)

    asked = ["doctor", "jnana", str(data["instruct"]), "--stage", "instruct", "--json", *overrides]
    assert main(asked) == 0, "without the stage before it"
    said = json.loads(capsys.readouterr().out)
    assert said["stage"] == "instruct" and all(check["ok"] for check in said["checks"])

    monkeypatch.setitem(CHECKS, "end", _refuses)
    assert main(["doctor", "jnana", str(data["caption"]), *overrides]) == 2
    shown = capsys.readouterr()
    assert "WRONG  end         look there" in shown.out
    assert shown.err.strip().endswith(f"trisense: doctor: 1 of {len(CHECKS)} checks are wrong: end")


def _refuses(case: Any) -> str:
    raise doctor.Wrong("look there")


def test_the_command_refuses_what_it_cannot_look_at(data: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "shrunk-phi", str(data["caption"])]) == 2
    assert "has no stage that learns from conversations, and no other is looked at" in capsys.readouterr().err
    assert main(["doctor", "jnana", str(data["caption"]), "--stage", "intruct"]) == 2
    assert "has no stage 'intruct' that learns from files; it has align, instruct" in capsys.readouterr().err


def test_a_large_file_is_looked_at_in_part(parts: Path, data: dict[str, Path], tmp_path: Path):
    tiny = recipe("eden", parts, "stages.instruct.rounds=2", "stages.instruct.steps=8")
    ready = get_ready(tiny, "instruct", data["instruct"], tmp_path, device="cpu", some=8)
    assert 2 <= len(ready.samples.pool) <= 8 and len(ready.held) <= 2
    longest = max(ready.samples.lengths.values())
    assert any(ready.samples.lengths[index] == longest for index in ready.samples.pool)
    assert wrong(ready) == []


def test_a_look_takes_no_more_memory_than_a_step(parts: Path, data: dict[str, Path], tmp_path: Path):
    """What is kept for the backward pass: little where the stage checkpoints its layers, and no dropout either way."""
    kept = {}
    for checkpointing in (False, True):
        options = recipe("eden", parts, f"stages.instruct.gradient_checkpointing={str(checkpointing).lower()}")
        ready = get_ready(options, "instruct", data["instruct"], tmp_path / str(checkpointing), device="cpu")
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            assert not [check for check in examine(ready) if not check.ok]
        kept[checkpointing] = sum(sizes)
    assert kept[True] < 0.6 * kept[False]
