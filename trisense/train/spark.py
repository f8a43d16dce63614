"""`trisense train spark`: from nothing to a model that answers, in one command.

Tokenizer -> bank of pictures and sounds -> `see` and `hear` warm the encoders up -> their features, computed once ->
`read` trains the language model on questions about media that are written in words -> `align` teaches the projectors to
write these words -> `answer` goes on with what they write. Every part is kept in the run's folder and not made again,
so the same command continues a run that was stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from trisense.data.batches import Batch, collate, like_length
from trisense.data.world.bank import Bank, scene_at
from trisense.data.world.contexts import SENSES, make_context, make_utterance
from trisense.data.world.feed import Features, Feed
from trisense.data.world.questions import ask_many
from trisense.errors import BadInput
from trisense.model.build import build_model, build_processor, train_tokenizer
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.senses import Sense
from trisense.prompt import Processor
from trisense.recipe import Recipe
from trisense.stage import Stage, WorldStage
from trisense.tokens import TextTokenizer
from trisense.train.align import Align, align_accuracy, align_batch
from trisense.train.checkpoints import same_run
from trisense.train.disk import write_text, write_whole
from trisense.train.loop import train
from trisense.train.processes import Parallel, Processes, join_processes
from trisense.train.report import Answer
from trisense.train.warmup import (
    Hear,
    See,
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


def train_spark(
    recipe: Recipe,
    out: Path,
    device: str = "auto",
    seed: int = 0,
    bank: Path | None = None,
    *,
    parallel: Parallel = "ddp",
    tracker: str | None = None,
) -> Path:
    """Trains the recipe in `out` and returns the folder of the finished model, `out/model`.

    device: `auto` or `cpu`. bank: where the drawn and spoken media are kept; default `out/bank`. parallel, tracker: as
    `train` takes them. Of several processes the main one makes the tokenizer, the bank and the features, and the others
    read them, so `out` has to be one folder for all. Raises BadInput when the bank is too small to learn from, or when
    the folder holds a run of other options.
    """
    processes = join_processes(device)
    tokenizer_file = out / "tokenizer.json"
    if processes.main:
        out.mkdir(parents=True, exist_ok=True)
        # The stages are compared with their checkpoints.
        run = {"seed": seed, **recipe.model_dump(mode="json")}
        same_run(out / "run.json", run, compared=("seed", "design", "world"))
        if not tokenizer_file.exists():
            write_text(tokenizer_file, train_tokenizer(world_texts(seed, TEXTS), recipe.design).to_json())
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
    torch.manual_seed(seed)
    model = build_model(recipe.design, processor)
    hear = Hear(sense_of(model, "audio"), processor.tokenizer.size)
    options = {"device": device, "parallel": parallel, "seed": seed, "tracker": tracker}
    run = Run(recipe, processor, media, model, hear, out, processes, seed, options)
    steps = {"see": _see, "hear": _hear, "read": _read, "align": _align, "answer": _answer}
    for name, stage in recipe.stages.items():
        steps[stage.learns](run, stage, out / name)
    folder = out / "model"
    if processes.main:
        model.save_pretrained(folder)
        processor.save(folder)
    processes.wait()
    return folder


@dataclass(frozen=True)
class Run:
    """What every stage works on. `hear` holds the head that names what is heard, for `align`. options: of `train`."""

    recipe: Recipe
    processor: Processor
    bank: Bank
    model: TrisenseForConditionalGeneration
    hear: Hear
    out: Path
    processes: Processes
    seed: int
    options: dict[str, Any]

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
            "data": f"the small world: {pictures:,} pictures, {sounds:,} utterances, questions made as they are needed",
            "seed": str(self.seed),
        }

    @cached_property
    def words(self) -> Words:
        assert self.processor.image
        return Words(self.hear, self.processor.tokenizer, round(self.processor.image.tokens**0.5))

    @cached_property
    def written(self) -> Features:
        """The bank in words, which every stage that learns to `read` shares."""
        return self.words.of_bank(self.bank, self.features)


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


def _see(run: Run, stage: Stage, out: Path) -> None:
    bank, image = run.bank, run.processor.image
    assert image
    pool, held = held_back(len(bank.scenes), "pictures")

    def batch_at(number: int) -> Batch:
        rng = np.random.default_rng((run.seed, 1, number))
        return picture_batch(bank, rng.integers(0, pool, stage.batch_size), image)

    learner = See(sense_of(run.model, "image"))
    train(
        learner,
        batch_at,
        stage,
        out,
        about=run.about,
        **run.options,
        evaluate=lambda m: picture_accuracy(m, bank, held, image),
    )


def _hear(run: Run, stage: Stage, out: Path) -> None:
    bank, words = run.bank, run.processor.tokenizer
    pool, held = held_back(len(bank.utterances), "utterances")

    def batch_at(number: int) -> Batch:
        rng = np.random.default_rng((run.seed, 2, number))
        return sound_batch(bank, rng.integers(0, pool, stage.batch_size), words, rng)

    train(
        run.hear,
        batch_at,
        stage,
        out,
        about=run.about,
        **run.options,
        evaluate=lambda m: sound_accuracy(m, bank, held, words),
    )


def _align(run: Run, stage: Stage, out: Path) -> None:
    words = run.words
    _, held = held_back(len(run.bank.scenes), "pictures")

    def batch_at(number: int) -> Batch:
        rng = np.random.default_rng((run.seed, 3, number))
        return align_batch(run.bank, run.features, words, rng, stage.batch_size)

    train(
        Align(run.model).requires_grad_(),
        batch_at,
        stage,
        out,
        about=run.about,
        **run.options,
        evaluate=lambda m: align_accuracy(m, run.bank, run.features, words, held),
    )


def _read(run: Run, stage: WorldStage, out: Path) -> None:
    run.model.senses.requires_grad_(False)
    feed = Feed(run.bank, run.written, stage.contexts, run.seed)
    _converse(run, Read(run.model), feed, stage, out)


def _answer(run: Run, stage: WorldStage, out: Path) -> None:
    # The projectors write words as these were when they were aligned. Projectors that learned along had lost them in
    # the end, so both stay as they are.
    run.model.senses.requires_grad_(False)
    run.model.get_input_embeddings().requires_grad_(False)
    feed = Feed(run.bank, run.features, stage.contexts, run.seed)
    processor, shown = run.processor, [EVALUATION + n for n in range(4)]
    _converse(run, run.model, feed, stage, out, lambda m: answer_samples(m, processor, feed, shown))


def _converse(
    run: Run,
    learner: Learner,
    feed: Feed,
    stage: Stage,
    out: Path,
    sample: Callable[[Learner], list[Answer]] | None = None,
) -> None:
    """Trains on the conversations of a feed."""

    held = [EVALUATION + n for n in range(256)]
    train(
        learner,
        like_length(lambda number: feed.prompt(number, run.processor), stage.batch_size, run.seed),
        stage,
        out,
        about=run.about,
        **run.options,
        evaluate=lambda m: answer_accuracy(m, run.processor, feed, held),
        sample=sample,
    )


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
            values, mask = (torch.from_numpy(array).to(device) for array in mels(bank, indices))
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


@torch.inference_mode()
def answer_accuracy(
    model: TrisenseForConditionalGeneration | Read, processor: Processor, feed: Feed, numbers: list[int]
) -> dict[str, float]:
    """Share of held-back questions whose answer would be decoded greedily to the letter, by the senses they need.

    One forward with the truth as history: an answer whose every token is the most likely one is what greedy decoding
    gives.
    """
    device = next(model.parameters()).device
    right: dict[str, list[bool]] = {}
    for start in range(0, len(numbers), 32):
        part = numbers[start : start + 32]
        prompts = [feed.prompt(number, processor) for number in part]
        batch = collate(prompts)
        logits = model(**{name: tensor.to(device) for name, tensor in batch.inputs.items()}).logits.cpu()
        labels = batch.inputs["labels"][:, 1:]
        hits = torch.ones_like(labels, dtype=torch.bool)
        hits[labels != -100] = logits.argmax(-1) == labels[labels != -100]
        for row, number in enumerate(part):
            questions = feed.questions(number)
            if not questions:  # now and then nothing that was tried fits the context
                continue
            supervised = np.flatnonzero(prompts[row].mask)
            answers = np.split(supervised, np.flatnonzero(np.diff(supervised) > 1) + 1)
            for question, span in zip(questions, answers, strict=True):
                exact = bool(hits[row, span - 1].all())
                group = ("none", question.senses[0] if question.senses else "", "two", "three")[len(question.senses)]
                right.setdefault(group, []).append(exact)
                right.setdefault("all", []).append(exact)
    return {group: sum(hits) / len(hits) for group, hits in sorted(right.items())}


def answer_samples(
    model: TrisenseForConditionalGeneration, processor: Processor, feed: Feed, numbers: list[int]
) -> list[Answer]:
    """Questions of held-back conversations, what the model says and the truth."""
    device = next(model.parameters()).device
    answers = []
    for number in numbers:
        prompt = feed.prompt(number, processor)
        questions = feed.questions(number)
        if not questions:
            continue
        question = questions[0]
        length = int(np.flatnonzero(prompt.mask)[0])
        batch = collate([prompt])
        media = {name: t.to(device) for name, t in batch.inputs.items() if name.startswith(("image_", "audio_"))}
        ids = cast(torch.LongTensor, batch.inputs["input_ids"][:, :length].to(device))
        said = model.generate(ids, **media, max_new_tokens=24, do_sample=False)[0, length:]
        answers.append(Answer(question.text, processor.tokenizer.decode(said.tolist()).strip(), question.answer))
    return answers
