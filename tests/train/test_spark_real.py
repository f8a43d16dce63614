"""What spark's stages learn from a pack of real data: which media how often, and what of them is written in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pack
import torch

from trisense.data.batches import Batch
from trisense.data.real.bank import NAMED
from trisense.data.real.pack import Pack, Ref
from trisense.data.real.sample import Sample, Spoken
from trisense.data.real.tasks import SINGLE, in_words, lettered
from trisense.data.world.bank import Bank, scene_at
from trisense.data.world.draw import draw
from trisense.data.world.facts import Scene, Thing
from trisense.errors import BadInput
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.recipe import read
from trisense.stage import WarmupStage
from trisense.train import spark
from trisense.train.real import LIKELIEST, OFTEN, VIEWS, Real
from trisense.train.spark import Run, real_texts, sense_of
from trisense.train.warmup import CELL
from trisense.train.words import Words

RECIPE = read("spark", ["real.samples=400", "real.sentences=3", "design.vocabulary=500"])
DESIGN = RECIPE.design
SIDE, SUMMARY = 6, 8
EMOJI, STRANGE = Ref("image", "pictures/noto72", 0), Ref("image", "scenes/nlvr_train", 0)
READ, EFFECT = Ref("audio", "speech/speechocean762_train_1", 0), Ref("audio", "sounds/tuxpaint_effects", 0)
NUMBER = Scene((Thing("number", "red", "large", 1, 1, text="42"),), 5)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return Pack(tiny_pack.write(tmp_path_factory.mktemp("pack")))


@pytest.fixture(scope="module")
def processor(pack: Pack) -> Any:
    return build_processor(DESIGN, train_tokenizer(real_texts(pack), DESIGN))


@pytest.fixture(scope="module")
def real(pack: Pack, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Real:
    return Real.of(pack, RECIPE, processor, tmp_path_factory.mktemp("real"), 0)


def asked(*given: Any, score: Any = "exact") -> Sample:
    return Sample("t", given, "What is this?", "an answer", score=score)


# --- what warm-ups are shown ---------------------------------------------------------------------------------------


def test_names_of_training_and_all_numbers_are_numbered_from_one(real: Real):
    numbers = [in_words(number) for number in SINGLE["drawn numbers"].subjects(real.pack, "train")]
    assert "forty two" in numbers and set(real.names) == {*real.learned.names, *numbers}
    assert sorted(real.names.values()) == list(range(1, len(real.names) + 1)), "0 is for pictures without a name"
    assert "yellow hat" in real.held.names and "yellow hat" not in real.names
    assert real.called[EMOJI] == "red apple" and "yellow hat" in real.called.values()


def test_pictures_are_drawn_by_their_file_and_all_of_it(real: Real):
    assert set(OFTEN) == set(NAMED) and sum(OFTEN.values()) == pytest.approx(1)
    drawn = real.draw_pictures(5000, np.random.default_rng(0))
    assert set(drawn) == set(range(len(real.learned.names))), "every picture comes"
    shares = Counter(real.learned.files[0][index] for index in drawn)
    for file, often in OFTEN.items():
        assert shares[file] / 5000 == pytest.approx(often, abs=3 * (often * (1 - often) / 5000) ** 0.5), file
    assert np.array_equal(drawn, real.draw_pictures(5000, np.random.default_rng(0)))


def test_a_pack_without_some_files_is_drawn_from_the_others(real: Real):
    emoji, shapes = "pictures/noto72", "pictures/easy_vqa_images"
    bank: Any = SimpleNamespace(files=([emoji] * 3 + [shapes] * 2, []))
    drawn = dataclasses.replace(real, learned=bank).draw_pictures(2000, np.random.default_rng(0))
    assert (drawn < 3).mean() == pytest.approx(0.45 / 0.51, abs=0.03) and set(drawn) == set(range(5))


def test_lettering_is_of_a_number_that_is_a_name(real: Real):
    drawn = [real.lettering(np.random.default_rng(seed)) for seed in range(40)]
    assert all(lettered(scene) == text and text in real.names for scene, text in drawn)
    assert len({text for _, text in drawn}) > 20
    assert drawn[3] == real.lettering(np.random.default_rng(3))


def test_long_recordings_are_drawn_more_often_by_their_length(real: Real):
    """Of 100, 200 and 300 frames: 1, 2 and 3 times of 6; as often as one of two spoken sentences."""
    bank: Any = SimpleNamespace(
        words=["a", "b", "c", "said", "said"],
        recorded=3,
        offsets=np.cumsum([0, 100, 200, 300, 5, 5]),
        sound=lambda index: (np.zeros((1, 80)), bank.words[index]),
    )
    world: Any = SimpleNamespace(sound=lambda index: (np.zeros((1, 80)), f"world {index}"))
    own, rng = dataclasses.replace(real, learned=bank), np.random.default_rng(0)
    found = Counter(own.draw_sound(world, 2, 0.75, rng)[1] for _ in range(8000))
    shares = {"said": 6 / 16, "a": 1 / 16, "b": 2 / 16, "c": 3 / 16, "world 0": 2 / 16, "world 1": 2 / 16}
    assert set(found) == set(shares)
    for word, share in shares.items():
        assert found[word] / 8000 == pytest.approx(share, abs=0.02), word


# --- media in words ------------------------------------------------------------------------------------------------


def test_what_has_a_name_or_words_is_written_in_them(real: Real, processor: Any):
    words = Words(processor.tokenizer, SIDE, SUMMARY)
    spoken = Spoken("the red cup", 1)
    samples = [asked(EMOJI, READ), asked(NUMBER, "a note")]
    own = dataclasses.replace(real, samples=samples, tested=[asked(spoken, STRANGE)])
    written = own.written(words, 0)
    assert set(written) == {EMOJI, READ, NUMBER, spoken, STRANGE}
    for one, expected in (
        (EMOJI, words.of_scene(Scene((), 0), "red apple")),
        (NUMBER, words.of_scene(NUMBER, "forty two")),
        (STRANGE, words.of_scene(Scene((), 0))),
    ):
        (view,) = written[one]
        assert np.array_equal(view, expected)
    nothing = words.heard[-1].tolist()
    for one, said in ((READ, "i see the bed"), (spoken, "the red cup")):
        assert len(written[one]) == VIEWS
        for view in written[one]:
            assert [row[0] for row in view.tolist() if row != nothing] == processor.tokenizer.plain(said)
        assert any(not np.array_equal(view, written[one][0]) for view in written[one][1:]), "at other moments in each"
    again = own.written(words, 0)
    assert all(np.array_equal(a, b) for one in written for a, b in zip(written[one], again[one], strict=True))


def test_a_sound_that_nobody_wrote_down_is_left_out_with_its_questions(real: Real, processor: Any):
    words = Words(processor.tokenizer, SIDE, SUMMARY)
    kept, lost = asked(EMOJI), asked(EMOJI, EFFECT)
    own = dataclasses.replace(real, samples=[kept, lost], tested=[lost])
    written = own.written(words, 0)
    assert set(written) == {EMOJI}
    assert list(own.feed(written, 0, written=True).samples) == [kept]
    assert not own.tested_feed(written, written=True).samples


def test_of_a_picture_without_a_name_words_tell_only_that_it_has_none(real: Real):
    known = [asked(EMOJI), asked(NUMBER), asked(READ), asked(STRANGE, score="refuses")]
    samples = [*known, asked(STRANGE), asked(EMOJI, STRANGE)]
    own = dataclasses.replace(real, samples=samples, tested=samples[3:5])
    shown: Any = {one: [np.zeros((1, 1))] for one in (EMOJI, NUMBER, READ, STRANGE)}
    assert list(own.feed(shown, 0, written=True).samples) == known
    assert list(own.tested_feed(shown, written=True).samples) == known[-1:]
    assert list(own.feed(shown, 0).samples) == samples, "an encoder sees more than words tell"
    assert list(own.tested_feed(shown).samples) == samples[3:5]


def test_most_samples_of_a_pack_can_be_told_in_words(real: Real, processor: Any):
    written = real.written(Words(processor.tokenizer, SIDE, SUMMARY), 0)
    told = Counter(sample.task for sample in real.feed(written, 0, written=True).samples)
    every = Counter(sample.task for sample in real.samples)
    assert sum(told.values()) > len(real.samples) / 2
    assert every["statements about scenes"] and not told["statements about scenes"]
    for task in ("name an emoji", "spoken digits", "nothing to name", "nobody speaks", "passages"):
        assert told[task] == every[task] > 0, task


def test_views_are_misnamed_where_the_summary_finds_other_names_likelier(real: Real, processor: Any):
    model = build_model(DESIGN, processor).requires_grad_(False)
    summary = sense_of(model, "image").summary
    assert summary
    other = next(ref for ref, name in real.called.items() if real.names.get(name, 0) and name != real.called[EMOJI])
    number = real.names[real.called[EMOJI]]
    # As likely as the mean of what stands before the summary has it; "none" and other names are likelier than all else.
    summary.names.weight.zero_()[number, 0] = 1
    summary.names.bias.fill_(-9)
    likely = [name for name in range(len(summary.names.bias)) if name not in (number, real.names[real.called[other]])]
    summary.names.bias[likely[:LIKELIEST]] = torch.arange(1.0, LIKELIEST + 1)
    summary.names.bias[number] = 0
    views = [np.full((SIDE**2 + SUMMARY, 256), value, np.float16) for value in (LIKELIEST + 2, 1.5, -2)]
    for view in views:
        view[-SUMMARY:] *= -9
    assert real.misnamed(model, {EMOJI: views, other: views, NUMBER: views}) == {EMOJI: {2}, other: {0, 1, 2}}


# --- the stages ----------------------------------------------------------------------------------------------------


def run(real: Real | None, processor: Any, tmp_path: Path, **senses: Any) -> Run:
    """A run with a bank of eight pictures and nothing said."""
    image = {**DESIGN.senses["image"], **senses}
    design = DESIGN.model_copy(update={"senses": {**DESIGN.senses, "image": image}})
    torch.manual_seed(0)
    bank = object.__new__(Bank)
    bank.scenes = [scene_at(0, "train", i) for i in range(8)]
    bank.pictures = [np.stack([np.asarray(draw(scene, 96)[0]) for scene in bank.scenes])]
    bank.utterances = []
    unused: Any = None
    return Run(RECIPE, processor, bank, real, build_model(design, processor), unused, tmp_path, unused, 0, None, {})


def test_a_batch_of_see_has_the_world_numbers_and_named_pictures(
    real: Real, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: dict[str, Any] = {}
    monkeypatch.setattr(spark, "train", lambda learner, batch_at, *rest, **options: made.update(at=batch_at))
    stage = WarmupStage(learns="see", steps=1, batch_size=30, lr=1e-3, real=2 / 3)
    monkeypatch.setattr(spark, "LETTERED", 0.25)
    monkeypatch.setattr(spark, "NAMELESS", 0.3)
    spark._see(run(real, processor, tmp_path), stage, tmp_path)
    batches: list[Batch] = [made["at"](number) for number in range(6)]
    kinds = list(CELL["kind"])
    numbers = {real.names[in_words(number)] for number in range(100)}
    nameless = 0
    for batch in batches:
        targets, named = batch.inputs["targets"], batch.inputs["named"].tolist()
        assert targets.shape == (30, SIDE**2 + SUMMARY, 6) and batch.inputs["pixel_values"].shape == (30, 3, 96, 96)
        assert not any(named[:10]) and (targets[:10, :36, 0] > 0).any(1).all(), "ten of the world"
        assert not (targets[:10, 36:] > 0).any()
        assert set(named[10:15]) <= numbers, "five drawn numbers"
        assert ((targets[10:15, :36, 0] == kinds.index("number") + 1).sum(1) == 1).all()
        assert not (targets[15:, :36] > 0).any(), "and fifteen of a pack, whose cells nobody knows"
        assert all((one > 0) == bool((rows > 0).any()) for one, rows in zip(named, targets[:, 36:], strict=True))
        nameless += named[15:].count(0)
    assert 0.15 < nameless / (6 * 15) < 0.45
    again = made["at"](2)
    assert all(torch.equal(again.inputs[name], values) for name, values in batches[2].inputs.items())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_convolutions_are_channels_last_while_they_learn_but_for_fsdp(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: str
):
    """FSDP refuses weights that are not contiguous."""
    own, seen = dataclasses.replace(run(None, processor, tmp_path), options={"parallel": parallel}), []
    encoder = sense_of(own.model, "image").encoder

    def whole() -> bool:
        return all(weight.is_contiguous() for weight in encoder.parameters())

    monkeypatch.setattr(spark, "train", lambda learner, batch_at, *rest, **options: seen.append(whole()))
    spark._see(own, WarmupStage(learns="see", steps=1, batch_size=4, lr=1e-3), tmp_path)
    assert seen == [parallel == "fsdp"] and whole()


def test_without_a_pack_see_learns_from_the_world_alone(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made: dict[str, Any] = {}
    monkeypatch.setattr(spark, "train", lambda learner, batch_at, *rest, **options: made.update(at=batch_at))
    stage = WarmupStage(learns="see", steps=1, batch_size=5, lr=1e-3, real=0.8)
    spark._see(run(None, processor, tmp_path), stage, tmp_path)
    batch = made["at"](0)
    assert not batch.inputs["named"].any() and (batch.inputs["targets"][:, :36, 0] > 0).any(1).all()


def test_more_names_than_a_summary_has_are_refused(real: Real, processor: Any, tmp_path: Path):
    count = len(real.names)
    stage = WarmupStage(learns="see", steps=1, batch_size=5, lr=1e-3)
    said = rf"^design.senses.image.names={count}: the data has {count} names, and one more is for none; give more$"
    with pytest.raises(BadInput, match=said):
        spark._see(run(real, processor, tmp_path, names=count), stage, tmp_path)
