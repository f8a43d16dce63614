"""Real media in spark's training: what the warm-ups learn from, and questions with frozen features of their media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from trisense.data.features import frozen_features
from trisense.data.real.bank import RealBank, named_pictures
from trisense.data.real.feed import RealFeed
from trisense.data.real.media import medium
from trisense.data.real.mixture import Mixture
from trisense.data.real.pack import Pack, Ref, Split
from trisense.data.real.sample import Medium, Sample, is_picture
from trisense.data.team import ALONE, Team
from trisense.data.world.bank import Bank
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Recipe
from trisense.train.words import Words

# Pictures that have a name are few for each name, so they are kept in so many views.
VIEWS = 4
# Questions of dev that stages are evaluated with.
TESTED = 1000
Shown = Mapping[Medium, list[np.ndarray]]

# Letters: S feature vectors of one medium, E width of an encoder, K tokens of one vector.


@dataclass(frozen=True)
class Real:
    """Real media to learn from, and those that are held out.

    names: the classes of pictures that are learned. called: what named pictures are called, of both splits.
    samples: questions that are learned; held: others, of dev.
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
        names = {name: number for number, name in enumerate(sorted({*learned.names}))}
        called = {ref: name for split in ("train", "dev") for ref, name in named_pictures(pack, cast(Split, split))}

        def drawn(split: Split, count: int) -> list[Sample]:
            mixture = Mixture(pack, split, seed)
            return [mixture.sample(number) for number in range(count)]

        samples = drawn("train", options.samples), drawn("dev", TESTED)
        return cls(pack, out, learned, held, names, called, *samples)

    def draw_sound(self, bank: Bank, pool: int, real: float, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """A log-mel [frames, M] and its words: in the share `real` a recording or a sentence, both as often, else one
        of the first `pool` utterances of the world's bank."""
        own, spoken = self.learned, len(self.learned.words) - self.learned.recorded
        if rng.random() >= real:
            return bank.sound(int(rng.integers(0, pool)))
        if spoken and rng.random() < 0.5:
            return own.sound(own.recorded + int(rng.integers(0, spoken)))
        return own.sound(int(rng.integers(0, own.recorded)))

    def features(self, model: TrisenseForConditionalGeneration, processor: Processor, team: Team = ALONE) -> Shown:
        """By picture and sound of all samples, what the frozen encoders make of its views, each [S, E]; once, by all
        processes of `team`."""
        media = list(
            dict.fromkeys(one for s in (*self.samples, *self.tested) for one in s.given if not isinstance(one, str))
        )
        kept: dict[Medium, list[np.ndarray]] = {}
        for name, reads in (("image", processor.image), ("audio", processor.audio)):
            assert reads
            sense = cast(Sense, model.senses[name]).eval()
            own = [one for one in media if (name == "image") == is_picture(one)]
            views = {
                one: [medium(self.pack, one, view) for view in range(VIEWS if one in self.called else 1)] for one in own
            }
            every = [view for several in views.values() for view in several]
            found = frozen_features(sense, reads, every, self.folder / "real-features", "", team=team)
            kept |= {one: [found[view] for view in several] for one, several in views.items()}
        return kept

    def written(self, features: Shown, words: Words) -> Shown:
        """The same media in words: ids [S, K] in place of features. Pictures without a name are left out."""
        found: dict[Medium, list[np.ndarray]] = {}
        for one, views in features.items():
            if not is_picture(one):
                found[one] = [words.of_sounds(torch.from_numpy(view.astype(np.float32))).numpy() for view in views]
            elif (name := self.called.get(cast(Ref, one))) in words.names:
                found[one] = [words.of_name(name).numpy()]
        return found

    def named_views(self, features: Shown) -> list[tuple[str, np.ndarray]]:
        """All views of the pictures whose name is learned, with it."""
        return [
            (name, view)
            for one, views in features.items()
            if is_picture(one) and (name := self.called.get(cast(Ref, one))) in self.names
            for view in views
        ]

    def feed(self, shown: Shown, seed: int) -> RealFeed:
        """What is learned from: the samples all of whose media are in `shown`."""
        return RealFeed(_shown_in(self.samples, shown), shown, seed)

    def tested_feed(self, shown: Shown) -> RealFeed:
        return RealFeed(_shown_in(self.tested, shown), shown, 0)


def _shown_in(samples: list[Sample], shown: Shown) -> list[Sample]:
    return [sample for sample in samples if all(isinstance(one, str) or one in shown for one in sample.given)]
