"""`trisense train spark`: from nothing to a model that answers, in one command.

Tokenizer -> bank of pictures and sounds -> `see` and `hear` warm the encoders up -> their features, computed once ->
`read` trains the language model on questions about media that are written in words -> the projectors write these words
-> `answer` goes on with what they write. Every part is kept in the run's folder and not made again,
so the same command continues a run that was stopped.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from trisense.data.batches import Batch, like_length
from trisense.data.real.augment import revoiced
from trisense.data.real.bank import named_pictures, recorded, sentences
from trisense.data.real.feed import Conversations, Mixed
from trisense.data.real.pack import Pack
from trisense.data.team import Team
from trisense.data.world.bank import Bank, scene_at
from trisense.data.world.contexts import SENSES, make_context, make_utterance
from trisense.data.world.feed import Features, Feed
from trisense.data.world.questions import ask_many
from trisense.errors import BadInput
from trisense.model.build import begin_with, build_model, build_processor, train_tokenizer
from trisense.model.checkpoint import load_model
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Recipe
from trisense.stage import Stage, WarmupStage, WorldStage
from trisense.tokens import TextTokenizer
from trisense.train.budget import within
from trisense.train.checkpoints import same_run
from trisense.train.conversing import answer_accuracy, answer_samples
from trisense.train.disk import write_text, write_whole
from trisense.train.loop import train
from trisense.train.processes import Parallel, Processes, join_processes
from trisense.train.real import Real, Shown
from trisense.train.report import Answer
from trisense.train.warmup import (
    Hear,
    Named,
    See,
    beside,
    grid,
    heard_errors,
    mels,
    picture_accuracy,
    picture_batch,
    pixels,
    sound_accuracy,
    sound_batch,
)
from trisense.train.words import Read, Words

# The last pictures and utterances of the bank, but at most a quarter, are for evaluation of a warm-up only; so are the
# conversations from here on for `read` and `answer`.
HELD_BACK = 512
EVALUATION = 1 << 40
# Of the real pictures that `see` learns from, the share that are drawn numbers, and of the others the share that are
# made pictures of nothing.
LETTERED = 0.1
NAMELESS = 0.12
# The tokenizer learns from the words of so many contexts.
TEXTS = 20_000

Learner = TypeVar("Learner", TrisenseForConditionalGeneration, Read)


def world_texts(seed: int, count: int) -> Iterator[str]:
    """Everything written or said in `count` contexts of the world, for the tokenizer."""
    rng = random.Random(f"{seed}/texts")
    for index in range(count):
        context = make_context(
            rng, "train", lambda r, topic, wish: make_utterance(r, topic, wish), SENSES, scene_at(seed, "train", index)
        )
        assert context.utterance and context.note
        yield context.utterance.words
        yield context.note.text
        for question in ask_many(rng, context, 8):
            yield question.text
            yield question.without_step().answer  # its words stand in the note


def real_texts(pack: Pack) -> Iterator[str]:
    """What of a pack's texts the tokenizer learns from, beside the world's."""
    yield from (words for _, words in recorded(pack, "train"))
    yield from (name for _, name in named_pictures(pack, "train"))
    yield from sentences(pack, "train")
    for _, row in pack.rows("text/qed", "train"):
        yield from (row["question"], row["text"])
    for _, row in pack.rows("text/wordnet", "train"):
        yield row["text"]


def train_spark(
    recipe: Recipe,
    out: Path,
    device: str = "auto",
    seed: int = 0,
    bank: Path | None = None,
    *,
    data: Path | None = None,
    after: Path | None = None,
    seconds: float | None = None,
    parallel: Parallel = "ddp",
    tracker: str | None = None,
) -> Path:
    """Trains the recipe in `out` and returns the folder of the finished model, `out/model`.

    device: `auto` or `cpu`. bank: where the drawn and spoken media are kept; default `out/bank`. data: a pack of real
    data (`trisense.data.real.pack`); without one all is of the small world. after: a model to begin with in place of
    nothing, but for the parts of senses that are other ones there. seconds: a budget that the stages share, as
    `recipe.budget` says, in place of their own steps. parallel, tracker: as `train` takes them. Of several processes
    the main one makes the tokenizer, the bank and the features, and the others read them, so `out` has to be one folder
    for all. Raises BadInput when the bank is too small to learn from, or when the folder holds a run of other options.
    """
    processes = join_processes(device)
    tokenizer_file = out / "tokenizer.json"
    pack = Pack(data) if data else None
    if processes.main:
        out.mkdir(parents=True, exist_ok=True)
        # The stages are compared with their checkpoints.
        run = {"seed": seed, "data": "a pack" if pack else None, "seconds": seconds, **recipe.model_dump(mode="json")}
        alike = ("seed", "data", "seconds", "design", "world", *(["real"] if pack else []))
        same_run(out / "run.json", run, compared=alike)
        if not tokenizer_file.exists():
            texts = chain(world_texts(seed, TEXTS), real_texts(pack) if pack else ())
            write_text(tokenizer_file, train_tokenizer(texts, recipe.design).to_json())
    processes.wait()
    processor = build_processor(recipe.design, TextTokenizer.from_file(tokenizer_file))
    assert processor.image and processor.audio
    with processes.main_first():
        media = Bank(
            bank or out / "bank",
            recipe.world.pictures,
            recipe.world.utterances,
            seed,
            processor.image.height,
            processor.audio,
        )
        real = Real.of(pack, recipe, processor, out, seed) if pack else None
    torch.manual_seed(seed)
    model = build_model(recipe.design, processor)
    if after:
        other = load_model(after, torch.float32), Processor.from_folder(after).tokenizer
        anew = begin_with(model, processor.tokenizer, *other)
        if anew and processes.main:
            print(f"{', '.join(anew)}: of another shape in {after}, so from nothing", file=sys.stderr)
    hear = Hear(sense_of(model, "audio"), processor.tokenizer.size)
    options = {"device": device, "parallel": parallel, "seed": seed, "tracker": tracker}
    run = Run(recipe, processor, media, real, model, hear, out, processes, seed, seconds, options)
    steps = {"see": _see, "hear": _hear, "read": _read, "answer": _answer}
    for name, stage in recipe.stages.items():
        steps[stage.learns](run, stage, out / name)
    _ = run.named  # also of a run without `answer`
    folder = out / "model"
    if processes.main:
        model.save_pretrained(folder)
        processor.save(folder)
    processes.wait()
    return folder


@dataclass(frozen=True)
class Run:
    """What every stage works on. real: None where all is of the small world. `hear` names what is heard. seconds: a
    budget for all of it. options: of `train`."""

    recipe: Recipe
    processor: Processor
    bank: Bank
    real: Real | None
    model: TrisenseForConditionalGeneration
    hear: Hear
    out: Path
    processes: Processes
    seed: int
    seconds: float | None
    options: dict[str, Any]

    def train(
        self,
        learner: Any,
        batch_at: Callable[[int], Batch],
        stage: Stage,
        out: Path,
        evaluate: Callable[[Any], dict[str, float]],
        sample: Callable[[Any], list[Answer]] | None = None,
    ) -> None:
        """One stage, with fewer or more steps than the recipe's where the run has a budget."""
        if self.seconds is not None:
            share = self.recipe.budget.get(out.name, 0.0)
            stage = within(share * self.seconds, learner, batch_at, evaluate, stage, out, self.processes)
        train(learner, batch_at, stage, out, about=self.about, evaluate=evaluate, sample=sample, **self.options)

    @cached_property
    def features(self) -> Features:
        """Asked for when the encoders have learned what they will."""
        with self.processes.main_first():
            return frozen_features(self.model, self.processor, self.bank, self.out / "features.npz")

    @cached_property
    def about(self) -> dict[str, str]:
        """For the card of every stage."""
        pictures, sounds = len(self.bank.scenes), len(self.bank.utterances)
        return {
            "recipe": self.recipe.name,
            "data": f"the small world: {pictures:,} pictures, {sounds:,} utterances, questions made as they are needed"
            + (
                f"; {len(self.real.learned.names):,} real pictures, {len(self.real.learned.words):,} sounds"
                if self.real
                else ""
            ),
            "seed": str(self.seed),
        }

    @cached_property
    def words(self) -> Words:
        assert self.processor.image
        summary = sense_of(self.model, "image").options.summary
        return Words(self.processor.tokenizer, grid(self.processor.image, summary), summary)

    @cached_property
    def named(self) -> None:
        """Asked for once, when the words will not change any more."""
        self.words.write(self.model)

    @cached_property
    def written(self) -> Features:
        """The bank in words, which every stage that learns to `read` shares."""
        assert self.processor.audio
        return self.words.of_bank(self.bank, self.processor.audio.frames_per_token)

    @cached_property
    def real_features(self) -> Shown:
        """Of the real media that questions are about; asked for when `features` is."""
        assert self.real
        processes = self.processes
        return self.real.features(self.model, self.processor, Team(processes.rank, processes.world, processes.gather))

    @cached_property
    def real_written(self) -> Shown:
        assert self.real
        return self.real.written(self.words, self.seed)


def sense_of(model: TrisenseForConditionalGeneration, name: str) -> Sense:
    sense = model.senses[name]
    assert isinstance(sense, Sense)
    return sense


def held_back(count: int, what: str) -> tuple[int, np.ndarray]:
    """How many media of a bank, from the first, are for training; and the indices of the rest, for evaluation."""
    pool = count - min(HELD_BACK, count // 4)
    if pool == count:
        raise BadInput(f"world.{what}={count}: too few to learn from and to evaluate with; give at least 4")
    return pool, np.arange(pool, count)


def _see(run: Run, stage: WarmupStage, out: Path) -> None:
    bank, image, real = run.bank, run.processor.image, run.real
    assert image
    pool, held = held_back(len(bank.scenes), "pictures")

    sense = sense_of(run.model, "image")
    summary = sense.options.summary
    called = Named(real.names if real else {}, run.processor.tokenizer, summary)

    def batch_at(number: int) -> Batch:
        rng = np.random.default_rng((run.seed, 1, number))
        others = round(stage.batch_size * stage.real) if real else 0
        drawn = picture_batch(bank, rng.integers(0, pool, stage.batch_size - others), image, summary)
        if not (real and others):
            return drawn
        letters = round(others * LETTERED)
        named = called.batch(real.learned, real.draw_pictures(others - letters, rng), image, rng, NAMELESS)
        texts = [real.lettering(rng) for _ in range(letters)]
        return beside(drawn, called.lettered(texts, image), named) if texts else beside(drawn, named)

    def evaluate(model: See) -> dict[str, float]:
        found = picture_accuracy(model, bank, held, image, summary)
        return found | (called.accuracy(model, real.held, image) if real else {})

    if len(called.numbers) >= sense.options.names:
        raise BadInput(
            f"design.senses.image.names={sense.options.names}: the data has {len(called.numbers)} names, and one more "
            "is for none; give more"
        )
    # Convolutions learn a quarter faster so on a CPU (docs/log.md); FSDP takes no weights that are laid out otherwise.
    # Afterwards they are as in a model that is loaded, whose features are then the same to the bit.
    encoder = sense.encoder
    for weight in encoder.parameters():
        if weight.dim() == 4 and run.options.get("parallel") != "fsdp":
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    run.train(See(sense).requires_grad_(), batch_at, stage, out, evaluate=evaluate)
    for weight in encoder.parameters():
        weight.data = weight.data.clone(memory_format=torch.contiguous_format)


def _hear(run: Run, stage: WarmupStage, out: Path) -> None:
    bank, words, real = run.bank, run.processor.tokenizer, run.real
    pool, held = held_back(len(bank.utterances), "utterances")

    def batch_at(number: int) -> Batch:
        rng = np.random.default_rng((run.seed, 2, number))
        if not (real and stage.real):
            return sound_batch([bank.sound(int(i)) for i in rng.integers(0, pool, stage.batch_size)], words, rng)
        # Neighbours in the order of their lengths: a batch is as long as its longest.
        drawn = [real.draw_sound(bank, pool, stage.real, rng) for _ in range(16 * stage.batch_size)]
        first = stage.batch_size * int(rng.integers(0, 16))
        drawn = sorted(drawn, key=lambda one: len(one[0]))[first : first + stage.batch_size]
        return sound_batch([(revoiced(mel, rng), said) for mel, said in drawn], words, rng)

    def evaluate(model: Hear) -> dict[str, float]:
        found = sound_accuracy(model, bank, held, words)
        return found | (heard_errors(model, real.held, words) if real else {})

    run.train(run.hear.requires_grad_(), batch_at, stage, out, evaluate=evaluate)


def _read(run: Run, stage: WorldStage, out: Path) -> None:
    run.model.senses.requires_grad_(False)
    real = run.real_written if run.real and stage.real else None
    _converse(run, Read(run.model), stage, out, run.written, real, written=True)


def _answer(run: Run, stage: WorldStage, out: Path) -> None:
    # The projectors write words as these are now, so both stay as they are, unless the stage gives projectors a rate of
    # their own.
    _ = run.named
    run.model.senses.requires_grad_(False)
    for name in run.model.senses:
        sense_of(run.model, name).projector.requires_grad_("projector" in stage.lrs)
    run.model.get_input_embeddings().requires_grad_(False)
    real = run.real_features if run.real and stage.real else None
    _converse(run, run.model, stage, out, run.features, real, answer_samples)


def _converse(
    run: Run,
    learner: Learner,
    stage: WorldStage,
    out: Path,
    features: Features,
    real: Shown | None,
    sample: Callable[[Learner, Processor, Conversations, list[int]], list[Answer]] | None = None,
    written: bool = False,
) -> None:
    """Trains on conversations about the world and, where there are features of real media, about them."""
    processor = run.processor
    world = Feed(run.bank, features, stage.contexts, run.seed)
    # What is evaluated with: conversations of a feed, by number.
    held: list[tuple[Conversations, list[int]]] = [(world, [EVALUATION + n for n in range(256)])]
    feed: Conversations = world
    if real is not None:
        assert run.real
        misnamed = None if written else run.real.misnamed(run.model, real)
        feed = Mixed(world, run.real.feed(real, run.seed, written, misnamed), stage.real, run.seed)
        if (tested := run.real.tested_feed(real, written)).samples:
            held.append((tested, list(range(512))))

    def evaluate(model: Learner) -> dict[str, float]:
        found: dict[str, float] = {}
        for conversations, numbers in held:
            found |= {
                f"real_{k}" if found and k == "all" else k: v
                for k, v in answer_accuracy(model, processor, conversations, numbers).items()
            }
        return found

    def shown(model: Learner) -> list[Answer]:
        assert sample
        return [answer for one, numbers in held for answer in sample(model, processor, one, numbers[:4])]

    batch_at = like_length(lambda number: feed.prompt(number, processor), stage.batch_size, run.seed)
    run.train(learner, batch_at, stage, out, evaluate, shown if sample else None)


@torch.inference_mode()
def frozen_features(model: TrisenseForConditionalGeneration, processor: Processor, bank: Bank, path: Path) -> Features:
    """What the warmed-up encoders make of the whole bank, computed once and kept in `path`."""
    if not path.exists():
        assert processor.image
        model.eval()
        # The senses were trained where the accelerator is; the language model may not be there yet.
        device = next(model.senses.parameters()).device
        eye, ear = sense_of(model, "image"), sense_of(model, "audio")
        images, audios, lengths = [], [], []
        for start in range(0, len(bank.scenes), 256):
            indices = np.arange(start, min(start + 256, len(bank.scenes)))
            values = torch.from_numpy(pixels(bank, indices, processor.image)).to(device)
            images.append(eye.encode(values).half().cpu().numpy())
        for start in range(0, len(bank.utterances), 64):
            indices = np.arange(start, min(start + 64, len(bank.utterances)))
            values, mask = (torch.from_numpy(array).to(device) for array in mels([bank.mel(int(i)) for i in indices]))
            encoded = ear.encode(values, mask)
            count = ear.lengths(encoded, mask)
            real = torch.arange(encoded.shape[1], device=device) < count[:, None]
            audios.append(encoded[real].half().cpu().numpy())
            lengths.append(count.cpu().numpy())
        arrays = {
            "images": np.concatenate(images),
            "audios": np.concatenate(audios),
            "offsets": np.concatenate([[0], np.concatenate(lengths).cumsum()]),
        }
        write_whole(path, lambda file: np.savez(file, **arrays), sum(array.nbytes for array in arrays.values()))
    stored = np.load(path)
    return Features(stored["images"], stored["audios"], stored["offsets"])
