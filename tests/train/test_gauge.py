"""Is it looking? What the samples held back are shown in place of their own media, and what it says of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image as Pictures

from trisense.chat import Conversation, Image, Message
from trisense.data.features import frozen_features
from trisense.prompt import Prompt, featured
from trisense.recipe import Recipe, read
from trisense.train.files import get_ready, held_back_loss, train_stage
from trisense.train.gauge import GREY, misled, nothing_to

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.pretrained(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain pictures: nothing but the picture says which colour is the answer."""
    folder, lines = tmp_path_factory.mktemp("data"), []
    for index in range(60):
        colour = list(COLOURS)[index % len(COLOURS)]
        Pictures.new("RGB", (40, 36), COLOURS[colour]).save(folder / f"{index}.png")
        lines.append(json.dumps(Conversation.ask("Which?", images=[f"{index}.png"]).answered(colour).to_dict()))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    return folder / "samples.jsonl"


def recipe(parts: Path, *overrides: str) -> Recipe:
    """Its first stage is left out."""
    options = {"steps": 60, "batch_size": 8, "lr": 1e-2, "warmup_steps": 2, "optimizer": "adamw", "evaluate_every": 30}
    changes = [f"stages.instruct.{key}={value}" for key, value in options.items()]
    changes += tiny_models.pretrained_overrides("context-gpt", parts)
    whole = read("context-gpt", [*changes, "stages.instruct.precision=float32", *overrides])
    return whole.model_copy(update={"stages": {"instruct": whole.stages["instruct"]}})


def test_a_model_that_looks_is_told_from_one_that_does_not(parts: Path, data: Path, tmp_path: Path):
    tiny = recipe(parts)
    trained = train_stage(tiny, "instruct", data, tmp_path, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "instruct/log.jsonl").read_text().splitlines()]
    held = [line for line in lines if "held_loss" in line]
    assert [line["step"] for line in held] == [30, 60]
    assert set(held[-1]) == {"step", "held_loss", "held_right", "held_loss_shuffled", "held_loss_blank"}
    assert held[-1]["held_loss"] < 0.5 * held[-1]["held_loss_shuffled"]
    assert held[-1]["held_loss"] < 0.5 * held[-1]["held_loss_blank"]

    # The same model when nothing of a picture comes through.
    ready = get_ready(tiny, "instruct", data, tmp_path, after=trained, device="cpu")
    ready.learner.eval()
    projector: Any = ready.learner.model.senses["image"].get_submodule("projector")
    projector.register_forward_hook(lambda module, given, out: torch.zeros_like(out))
    true = held_back_loss(ready.learner, ready.held, 4)["held_loss"]
    for other in ready.misled.values():
        assert held_back_loss(ready.learner, other, 4)["held_loss"] == pytest.approx(true, rel=1e-6)
    assert true > held[-1]["held_loss"]


def test_tensorboard_shows_it(parts: Path, data: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny = recipe(parts, "stages.instruct.steps=3", "stages.instruct.evaluate_every=2")
    train_stage(tiny, "instruct", data, tmp_path, device="cpu")
    board = EventAccumulator(str(tmp_path / "instruct"))
    board.Reload()
    for name in ("held_loss", "held_loss_shuffled", "held_loss_blank"):
        assert [event.step for event in board.Scalars(name)] == [2, 3]


def shows(*pictures: np.ndarray) -> Prompt:
    content = tuple(Image(image=picture) for picture in pictures)
    asked = Conversation(messages=(Message(role="user", content=content),))
    return featured(asked.answered("it"), tiny_models.processor())


def test_no_sample_keeps_its_own_picture_though_all_are_shown():
    from trisense.model import TrisenseForConditionalGeneration

    model = TrisenseForConditionalGeneration(tiny_models.config())
    made = [np.full((16, 16), number, np.float16) for number in range(7)]
    # Two samples about one picture, one about two, and one whose picture has a copy.
    held = [shows(made[0]), shows(made[0]), shows(made[1], made[2]), *map(shows, made[3:]), shows(made[3].copy())]
    other = misled(model, tiny_models.processor(), held)
    assert set(other) == {"held_loss_shuffled", "held_loss_blank"}
    shuffled = other["held_loss_shuffled"]
    before, after = ([float(v[0, 0]) for one in prompts for v in one.values] for prompts in (held, shuffled))
    assert all(a != b for a, b in zip(before, after, strict=True))
    exchanged = dict(zip(before, after, strict=True))
    assert sorted(exchanged.values()) == list(range(7)), "an exchange: every picture is still shown"
    assert [exchanged[one] for one in before] == after, "samples about one picture still are"
    for prompt, one in zip(held, shuffled, strict=True):
        assert np.array_equal(prompt.ids, one.ids) and np.array_equal(prompt.mask, one.mask)
    blank = {v.tobytes() for one in other["held_loss_blank"] for v in one.values}
    assert len(blank) == 1 and np.frombuffer(blank.pop(), np.float16).reshape(16, 16).std() > 0
    alike = misled(model, tiny_models.processor(), [shows(made[0]), shows(made[0].copy())])
    assert set(alike) == {"held_loss_blank"}, "one picture cannot be exchanged"
    assert misled(model, tiny_models.processor(), [shows()]) == {}


@pytest.mark.parametrize("design", tiny_models.DESIGNS)
def test_a_blank_picture_and_silence_are_what_the_encoder_makes_of_their_files(design: str, tmp_path: Path):
    from trisense.model import TrisenseForConditionalGeneration

    torch.manual_seed(0)
    model: Any = TrisenseForConditionalGeneration(tiny_models.config(design)).eval()
    processor = tiny_models.processor(design)
    assert processor.image and processor.audio
    grey, quiet = str(tmp_path / "grey.png"), str(tmp_path / "quiet.wav")
    Pictures.new("RGB", (50, 60), (GREY, GREY, GREY)).save(grey)
    image = frozen_features(model.senses["image"], processor.image, [grey], tmp_path, "")[grey]
    assert np.array_equal(nothing_to(model.senses["image"], processor, 16), image)

    tiny_models.sound_file(Path(quiet), 0, 0.96)
    data = bytearray(Path(quiet).read_bytes())
    data[44:] = bytes(len(data) - 44)
    Path(quiet).write_bytes(data)
    audio = frozen_features(model.senses["audio"], processor.audio, [quiet], tmp_path, "")[quiet]
    assert np.array_equal(nothing_to(model.senses["audio"], processor, len(audio)), audio)


def test_silence_stands_for_sounds_of_any_length(tmp_path: Path):
    from trisense.chat import Audio
    from trisense.model import TrisenseForConditionalGeneration

    model = TrisenseForConditionalGeneration(tiny_models.config()).eval()
    processor = tiny_models.processor()
    prompts = []
    for length in (3, 9):
        content = (Audio(audio=np.ones((length, 16), np.float16)),)
        asked = Conversation(messages=(Message(role="user", content=content),))
        prompts.append(featured(asked.answered("it"), processor))
    (name, quiet), *rest = misled(model, processor, prompts).items()
    assert name == "held_loss_silence" and not rest
    assert [one.values[0].shape for one in quiet] == [(3, 16), (9, 16)]
    for one in quiet:
        silence = nothing_to(model.senses["audio"], processor, len(one.values[0]))
        assert np.array_equal(one.values[0], silence) and not (silence == 1).any()
