"""Real media in spark's training: what the warm-ups learn from, and questions with frozen features of their media."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch

from trisense.data.features import frozen_features
from trisense.data.real.bank import RealBank, named_pictures, recorded
from trisense.data.real.feed import Misnamed, RealFeed
from trisense.data.real.media import medium
from trisense.data.real.mixture import Mixture
from trisense.data.real.pack import Pack, Ref, Split
from trisense.data.real.sample import Given, Medium, Sample, Spoken, is_picture
from trisense.data.real.tasks import SINGLE, in_words, lettered
from trisense.data.team import ALONE, Team
from trisense.data.world.bank import Bank
from trisense.data.world.facts import Scene
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Recipe
from trisense.train.words import Words

# Pictures that have a name are few for each name, and an encoder knows the recordings that it learned from better than
# any other, so both are kept in so many views.
VIEWS = 4
# Questions of dev that stages are evaluated with.
TESTED = 1000
# A view of a picture is misnamed where the right name is not among so many of the likeliest. With one in place of three
# a third of all products was refused, and fewer were named rightly than before any was (docs/log.md).
LIKELIEST = 3
# How often `see` is shown the named pictures of each file: emoji most, of which there are most names.
OFTEN = {
    "pictures/noto72": 0.45,
    "pictures/grocery": 0.25,
    "pictures/tuxpaint": 0.12,
    "pictures/art4apps": 0.12,
    "pictures/easy_vqa_images": 0.06,
}
Shown = Mapping[Medium, list[np.ndarray]]

# Letters: S feature vectors of one medium, E width of an encoder, K tokens of one vector.


@dataclass(frozen=True)
class Real:
    """Real media to learn from, and those that are held out.

    names: those of pictures and drawn numbers that are learned, numbered from 1. called: what named pictures are
    called, of both splits. samples: questions that are learned; tested: others, of dev.
    """

    pack: Pack
    folder: Path
    learned: RealBank
    held: RealBank
    names: dict[str, int]
    called: dict[Ref, str]
    samples: list[Sample]
    tested: list[Sample]

    @classmethod
    def of(cls, pack: Pack, recipe: Recipe, processor: Processor, out: Path, seed: int) -> Real:
        """Reads and speaks what `out` does not hold yet."""
        assert processor.image and processor.audio
        size, sounds, options = processor.image.height, processor.audio, recipe.real
        learned = RealBank(out / "real", pack, "train", size, sounds, options.sentences, seed)
        held = RealBank(out / "real-dev", pack, "dev", size, sounds, 0, seed)
        numbers = map(in_words, SINGLE["drawn numbers"].subjects(pack, "train"))
        names = {name: number for number, name in enumerate(sorted({*learned.names, *numbers}), 1)}
        called = {ref: name for split in ("train", "dev") for ref, name in named_pictures(pack, cast(Split, split))}

        def drawn(split: Split, count: int) -> list[Sample]:
            mixture = Mixture(pack, split, seed)
            return [mixture.sample(number) for number in range(count)]

        samples = drawn("train", options.samples), drawn("dev", TESTED)
        return cls(pack, out, learned, held, names, called, *samples)

    def draw_pictures(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Numbers of `count` pictures that have a name; each file as often as `OFTEN` says."""
        files = list(self._pictures_of)
        often = np.array([OFTEN[file] for file in files])
        chosen = rng.choice(len(files), count, p=often / often.sum())
        return np.array([rng.choice(self._pictures_of[files[one]]) for one in chosen], np.int64)

    @cached_property
    def _pictures_of(self) -> dict[str, np.ndarray]:
        """By file, the numbers of its pictures."""
        files = np.array(self.learned.files[0])
        return {file: np.flatnonzero(files == file) for file in OFTEN if (files == file).any()}

    def lettering(self, rng: np.random.Generator) -> tuple[Scene, str]:
        """A drawn number, and what it reads."""
        chance, task = random.Random(int(rng.integers(0, 1 << 62))), SINGLE["drawn numbers"]
        asked = task.ask(chance, chance.choice(task.subjects(self.pack, "train")))
        return cast(Scene, asked.given[0]), asked.answer

    def draw_sound(self, bank: Bank, pool: int, real: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """A log-mel [frames, M] and its words: in the share `real` a recording or a sentence, both as often, else one
        of the first `pool` utterances of the world's bank. Of recordings, long ones are drawn more often, by their
        length: there are few of them, and most to learn in each."""
        own, spoken = self.learned, len(self.learned.words) - self.learned.recorded
        if rng.random() >= real:
            return bank.sound(int(rng.integers(0, pool)))
        if spoken and rng.random() < 0.5:
            return own.sound(own.recorded + int(rng.integers(0, spoken)))
        return own.sound(int(np.searchsorted(self._drawn_by_length, rng.random())))

    @cached_property
    def _drawn_by_length(self) -> np.ndarray:
        """float64 [recordings], rising to 1: the probability of one up to each."""
        weights = np.diff(self.learned.offsets)[: self.learned.recorded]
        rising = weights.cumsum() / weights.sum()
        rising[-1] = 1.0
        return rising

    def features(self, model: TrisenseForConditionalGeneration, processor: Processor, team: Team = ALONE) -> Shown:
        """By picture and sound of all samples, what the frozen encoders make of its views, each [S, E]; once, by all
        processes of `team`."""
        media = self._media()
        viewed = {*self.called, *(ref for ref, _ in recorded(self.pack, "train"))}
        kept: dict[Medium, list[np.ndarray]] = {}
        for name, reads in (("image", processor.image), ("audio", processor.audio)):
            assert reads
            sense = cast(Sense, model.senses[name]).eval()
            own = [one for one in media if (name == "image") == is_picture(one)]
            views = {
                one: [medium(self.pack, one, view) for view in range(VIEWS if one in viewed else 1)] for one in own
            }
            every = [view for several in views.values() for view in several]
            found = frozen_features(sense, reads, every, self.folder / "real-features", "", team=team)
            kept |= {one: [found[view] for view in several] for one, several in views.items()}
        return kept

    @torch.no_grad()
    def misnamed(self, model: TrisenseForConditionalGeneration, shown: Shown) -> Misnamed:
        """Of pictures whose names are learned, the views whose summary says other names."""
        summary = cast(Sense, model.senses["image"]).summary
        if summary is None:
            return {}
        found: dict[Medium, set[int]] = {}
        for ref in shown.keys() & self.called.keys():
            if (number := self.names.get(self.called[cast(Ref, ref)])) is not None:
                means = np.stack([view[: -summary.count].astype(np.float32).mean(0) for view in shown[ref]])
                said = summary.names(torch.from_numpy(means).to(summary.names.weight)).topk(LIKELIEST).indices
                found[ref] = {view for view, names in enumerate(said.tolist()) if number not in names}
        return found

    def written(self, words: Words, seed: int) -> Shown:
        """By picture and sound of all samples, its views in words: ids [S, K] in place of features. What a sound says
        is heard at other moments in each; what nobody wrote down is left out."""
        rng, found = np.random.default_rng((seed, 4)), dict[Medium, list[np.ndarray]]()
        heard = {ref: said for split in ("train", "dev") for ref, said in recorded(self.pack, cast(Split, split))}
        for one in self._media():
            if isinstance(one, Scene):
                found[one] = [words.of_scene(one, lettered(one))]
            elif is_picture(one):
                found[one] = [words.of_scene(Scene((), 0), self.called.get(cast(Ref, one)))]
            elif said := one.words if isinstance(one, Spoken) else heard.get(cast(Ref, one)):
                found[one] = [words.of_speech(said, rng) for _ in range(VIEWS)]
        return found

    def _media(self) -> list[Medium]:
        """The pictures and sounds of all samples."""
        given = (one for sample in (*self.samples, *self.tested) for one in sample.given)
        return list(dict.fromkeys(one for one in given if not isinstance(one, str)))

    def feed(self, shown: Shown, seed: int, written: bool = False, misnamed: Misnamed | None = None) -> RealFeed:
        """What is learned from: the samples all of whose media are in `shown`; in words, those that words tell."""
        return RealFeed(self._told(self.samples, shown, written), shown, seed, misnamed or {}, whole=written)

    def tested_feed(self, shown: Shown, written: bool = False) -> RealFeed:
        return RealFeed(self._told(self.tested, shown, written), shown, 0)

    def _told(self, samples: list[Sample], shown: Shown, written: bool) -> list[Sample]:
        """Nothing is told of a picture that has no name, but that one cannot say what it is."""

        def nameless(one: Given) -> bool:
            return isinstance(one, Ref) and is_picture(one) and one not in self.called

        return [
            sample
            for sample in samples
            if all(isinstance(one, str) or one in shown for one in sample.given)
            and not (written and sample.score != "refuses" and any(map(nameless, sample.given)))
        ]
