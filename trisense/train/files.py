"""Stages that learn from files of conversations, with pretrained parts: `caption` and `instruct`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisense.assistant.transcribe import Transcript
from trisense.chat import Audio, Conversation, Image, Message, Part, Text
from trisense.data.batches import Batch, by_answer, like_length
from trisense.data.features import Features, frozen_features
from trisense.data.packing import Bundles, packed
from trisense.data.rounds import disjoint, one_after_another
from trisense.data.selection import NO_TRANSCRIPTS, Damaged, Selection, fitted, prepared, select
from trisense.data.sources import Source, is_missing, open_source
from trisense.data.transcripts import transcripts
from trisense.errors import BadInput
from trisense.model.attention import SEGMENTS
from trisense.model.loss import fuse_activations
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.model.trained import has_adapter, put_trained, save_trained, staged
from trisense.prompt import Processor, Prompt, featured
from trisense.recipe import FileStage, Recipe, ScheduledSampling, Speech
from trisense.train.checkpoints import CHECKPOINT, same_run
from trisense.train.held import held_back_loss, shown_answers
from trisense.train.loop import train
from trisense.train.optim import round_starts
from trisense.train.processes import Parallel, Processes, join_processes

# One sample in so many, but at most HELD_BACK, is kept from training, to evaluate with.
ONE_IN = 10
HELD_BACK = 200
TRAINED = "trained"
# By sense and path: features on disk, or some of them.
Shown = Mapping[str, Features] | Mapping[str, Mapping[str, np.ndarray]]


def train_stage(
    recipe: Recipe,
    name: str,
    data: str | os.PathLike[str],
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    skip_bad: int = 0,
    parallel: Parallel = "ddp",
    tracker: str | None = None,
) -> Path:
    """Trains one stage of a recipe on conversations; the folder of the trained parts, `out/NAME/trained`.

    data, media: as `open_source` takes them. after: trained parts to begin with; default: those of the recipe's stage
    before, in the same `out`. device: `auto` or `cpu`. skip_bad: how many damaged rows and samples without their media
    may be left out. parallel, tracker: as `train` takes them. The same call goes on where one was stopped. Of several
    processes the main one computes the features and writes, so `out` has to be one folder for all.
    Raises BadInput for a stage that learns from something else, a stage before that was not trained, data without
    samples, with fewer than rounds or with more damaged ones, a folder that began with other data or another design,
    and whatever `load_design`, `put_trained` and `train` refuse.
    """
    options = {"media": media, "after": after, "device": device, "parallel": parallel, "seed": seed}
    ready = get_ready(recipe, name, data, out, **options, skip_bad=skip_bad)
    stage = ready.samples.stage
    if ready.processes.main:
        same_run(out / name / "run.json", ready.run, compared=())
    train(
        ready.learner,
        ready.batch_at,
        stage,
        out / name,
        device=device,
        parallel=parallel,
        seed=seed,
        evaluate=lambda m: held_back_loss(m, ready.held, stage.batch_size),
        sample=lambda m: shown_answers(m, ready),
        tracker=tracker,
        about={
            "recipe": recipe.name,
            "data": f"{data}: {ready.samples.counts()}",
            "seed": str(seed),
            "design": yaml.safe_dump(ready.run["design"], sort_keys=False),
        },
    )
    trained = out / name / TRAINED
    if ready.processes.main:
        save_trained(ready.learner.model, recipe, name, trained)
        tqdm.write("\n".join([ready.samples.counts(), *ready.samples.selection.damaged.rows]))
    ready.processes.wait()
    return trained


@dataclass(frozen=True)
class Ready:
    """A stage before its first step. held: the samples to evaluate with. run: what a run of it remembers."""

    learner: Learner
    batch_at: Callable[[int], Batch]
    samples: Samples
    held: list[Prompt]
    processor: Processor
    processes: Processes
    run: dict[str, Any]


def get_ready(
    recipe: Recipe,
    name: str,
    data: str | os.PathLike[str],
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    parallel: Parallel = "ddp",
    seed: int = 0,
    skip_bad: int = 0,
) -> Ready:
    """Everything that `train_stage` trains with, by the same arguments; of `out` nothing changes but what is made of
    the media once. Raises BadInput as `train_stage`."""
    stage = _stage(recipe, name)
    after = after or _before(recipe, name, out)
    source = open_source(data, media, turns=stage.turns, pictures=recipe.design.pictures)
    source.check_media()
    processes = join_processes(device)
    on_gpu = processes.device.type == "cuda" and parallel == "ddp"
    torch.manual_seed(seed)
    design = staged(recipe, name)
    model, processor = load_design(design, processes.device if on_gpu else "cpu")
    model.senses.to(processes.device)
    if after is not None:
        put_trained(model, recipe, after)
    if stage.learns == "instruct" and not has_adapter(model):
        add_adapter(model, design)
    for key, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(stage.learns == "instruct" and ".lora_" in key)
    if stage.packing and processes.device.type != "cuda":
        model.language_model.set_attn_implementation(SEGMENTS)
    if stage.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    heard = NO_TRANSCRIPTS
    if recipe.audio == "transcript" and recipe.answering.speech:
        with processes.main_first():
            heard = _transcripts(source, recipe.answering.speech, device, out, Damaged(skip_bad))
    context = model.config.text_config.max_position_embeddings
    samples = Samples.of(source, stage, processor, seed, context, skip_bad, heard)
    run = {"data": source.fingerprint, "design": design.model_dump(mode="json")}
    begun = (out / name / CHECKPOINT).exists()
    if begun and processes.main:
        same_run(out / name / "run.json", run, compared=run)
    with processes.main_first():
        features = _features(model, processor, samples, recipe, out)
    samples.leave_out_damaged()
    if processes.main:
        tqdm.write(samples.counts())
    for sense in model.senses.values():  # has done its work
        sense.encoder = nn.Identity()
    fuse_activations(model)
    learner = Learner(model, stage.label_smoothing, stage.scheduled_sampling)
    held = [samples.prompt(index, processor, features) for index in samples.held]
    batch_at = _batches(samples, processor, features, processes.world)
    return Ready(learner, batch_at, samples, held, processor, processes, run)


class Learner(nn.Module):
    """A model with the loss of one stage. Its state is what learns: frozen parts are not written again and again."""

    def __init__(
        self,
        model: TrisenseForConditionalGeneration,
        label_smoothing: float = 0.0,
        sampling: ScheduledSampling | None = None,
    ):
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.sampling = sampling

    def forward(self, own_words: torch.Tensor | None = None, **inputs: Any) -> CausalLMOutputWithPast:
        """Inputs and output of the model's own forward, but no logits. own_words: bool, whether scheduled sampling has
        begun."""
        if self.sampling and own_words is not None and bool(own_words):
            inputs["input_ids"] = self._with_own_words(inputs, self.sampling.first)
        return self.model(**inputs, label_smoothing=self.label_smoothing, return_logits=False)

    @torch.no_grad()
    def _with_own_words(self, inputs: dict[str, Any], first: int) -> torch.Tensor:
        """input_ids [B, T] with what the model says in place of an answer's tokens, the `first` aside.

        One teacher-forced pass says what it finds likeliest at every place (Mihaylova & Martins 2019,
        arXiv:1906.07651), where the published code ran one pass per token.
        """
        ids = inputs["input_ids"].clone()
        target = inputs["labels"] != -100  # [B, T]
        target[:, 0] = False
        logits = self.model(**inputs).logits  # [supervised, V]
        logits[:, list(self.model.placeholders.values())] = -torch.inf
        places = torch.arange(ids.shape[1], device=ids.device)
        goes_on = target & target.roll(1, 1)  # from a target before it, which in a fan is not that of another branch
        if "predicted_from" in inputs:
            goes_on &= inputs["predicted_from"] == places - 1
        # Targets of the answers before this one.
        before = torch.where(target & ~goes_on, target.cumsum(1) - 1, 0).cummax(1).values
        own = target & (target.cumsum(1) - before > first)
        ids[own] = logits.argmax(-1)[own[target]]
        return ids

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        whole = super().state_dict(*args, **kwargs)
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in whole.items() if name in learning}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        if strict and set(state_dict) != set(self.state_dict()):
            raise RuntimeError("other parameters learned")
        return super().load_state_dict(state_dict, strict=False, assign=assign)


@dataclass
class Samples:
    """The samples of a source that a stage can use: `held` back for evaluation, and those to learn from. lengths: of
    their longest answers, in tokens. selection: an account of the others. transcripts: of their sounds, for a model
    without ears."""

    source: Source
    stage: FileStage
    processor: Processor
    pool: list[int]
    held: list[int]
    lengths: dict[int, int]
    seed: int
    selection: Selection
    transcripts: Mapping[str, Transcript | BadInput]
    _order: tuple[int, np.ndarray] | None = None  # of the round under way, and its number

    @classmethod
    def of(
        cls,
        source: Source,
        stage: FileStage,
        processor: Processor,
        seed: int,
        context: int,
        skip_bad: int = 0,
        transcripts: Mapping[str, Transcript | BadInput] = NO_TRANSCRIPTS,
    ) -> Samples:
        """Raises BadInput when the stage can use fewer than two samples, and for more damaged ones than `skip_bad`."""
        selection = select(source, stage, processor, context, Damaged(skip_bad), transcripts)
        usable = list(selection.lengths)
        if len(usable) < 2:
            raise _too_few(selection)
        random.Random(f"{seed}/held").shuffle(usable)
        held = max(1, min(HELD_BACK, len(usable) // ONE_IN))
        pool, held = sorted(usable[held:]), sorted(usable[:held])
        return cls(source, stage, processor, pool, held, selection.lengths, seed, selection, transcripts)

    def leave_out_damaged(self) -> None:
        """Drops samples whose media could not be read. Raises BadInput when too few are left."""
        self.pool = [index for index in self.pool if index in self.lengths]
        self.held = [index for index in self.held if index in self.lengths]
        if not self.pool or not self.held:
            raise _too_few(self.selection)

    def counts(self) -> str:
        """One line: how many samples are used, skipped (and why) and truncated."""
        return self.selection.account(len(self.pool), len(self.held))

    def learned(self, number: int) -> int:
        """Index in the source of the sample learned as `number`: every one once, in an order drawn anew each time."""
        turn, place = divmod(number, len(self.pool))
        if self._order is None or self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.pool))
        return self.pool[self._order[1][place]]

    def rounds(self) -> list[Samples]:
        """What each round of the stage learns from. Raises BadInput for more rounds than samples."""
        count, pool = self.stage.rounds, self.pool
        if count > len(pool):
            raise BadInput(f"{self.source.name}: rounds: {count}, but only {len(pool)} samples to learn from")
        return [replace(self, pool=part, _order=None) for part in disjoint(pool, count, self.seed)]

    def conversation(self, index: int) -> Conversation:
        sample = prepared(self.source, index, self.stage, self.transcripts)
        if sample is not None and index in self.selection.truncated:
            sample = fitted(sample, self.processor, self.selection.context)
        assert sample is not None
        return sample

    def media(self) -> dict[str, list[Any]]:
        """What the pictures and sounds that the model is shown are read from, by sense, in the order of the source, in
        which archives and streams are read best."""
        return media_in(self.conversation(index) for index in sorted((*self.pool, *self.held)))

    def prompt(self, index: int, processor: Processor, features: Shown) -> Prompt:
        """The rendered sample, its pictures and sounds as features [S, E]."""

        def shown(part: Part) -> Part:
            if isinstance(part, Image):
                return Image(image=features["image"][part.image])
            return Audio(audio=features["audio"][part.audio]) if isinstance(part, Audio) else part

        messages = [
            Message(role=message.role, content=tuple(map(shown, message.content)))
            for message in self.conversation(index).messages
        ]
        return featured(Conversation(messages=tuple(messages)), processor)

    def prompts(self, indices: Sequence[int], processor: Processor, features: Mapping[str, Features]) -> list[Prompt]:
        """Rendered samples about the same media, which are the same arrays in all of them, as a fan wants them."""
        paths = media_in([self.conversation(indices[0])])
        same = {sense: {path: features[sense][path] for path in own} for sense, own in paths.items()}
        return [self.prompt(index, processor, same) for index in indices]

    def about(self, index: int) -> object:
        """What a sample's media are; None for text alone."""
        paths = media_in([self.conversation(index)])
        return tuple(map(tuple, paths.values())) if any(paths.values()) else None


def _transcripts(
    source: Source, speech: Speech, device: str, out: Path, damaged: Damaged
) -> Mapping[str, Transcript | BadInput]:
    """Of all sounds of a source. Raises BadInput, naming the row, for more that cannot be read than allowed."""

    def unreadable(sound: Any, error: BadInput) -> None:
        damaged.add(BadInput(f"{source.showing(sound)}: {error}"))

    sounds = media_in(conversation for _, conversation in source.good())["audio"]
    return transcripts([sound for sound in sounds if not is_missing(sound)], speech, device, out, unreadable)


def media_in(conversations: Iterable[Conversation]) -> dict[str, list[Any]]:
    """What pictures and sounds are read from, by sense: paths, or references into an archive."""
    found: dict[str, list[Any]] = {"image": [], "audio": []}
    for conversation in conversations:
        for message in conversation.messages:
            for part in message.content:
                if not isinstance(part, Text):
                    found[part.type].append(part.image if isinstance(part, Image) else part.audio)
    return found


def _stage(recipe: Recipe, name: str) -> FileStage:
    known = ", ".join(key for key, stage in recipe.stages.items() if isinstance(stage, FileStage)) or "none"
    stage = recipe.stages.get(name)
    if not isinstance(stage, FileStage):
        raise BadInput(f"recipe {recipe.name} has no stage {name!r} that learns from files; it has {known}")
    return stage


def _too_few(selection: Selection) -> BadInput:
    return BadInput(
        f"{selection.source.name}: {len(selection.lengths)} samples that this stage can use; expected two at least, to "
        f"learn from and to evaluate with; skipped: {selection.reasons()}"
    )


def _batches(
    samples: Samples, processor: Processor, features: Mapping[str, Features], processes: int = 1
) -> Callable[[int], Batch]:
    """The batch of a number, from the round that has it."""
    stage = samples.stage
    width = stage.accumulate * processes
    rounds = [_batches_of(part, processor, features) for part in samples.rounds()]
    batch_at = one_after_another(rounds, [start * width for start in round_starts(stage)])
    if stage.scheduled_sampling is None:
        return batch_at
    begins = round(stage.scheduled_sampling.after * stage.steps) * width

    def marked(number: int) -> Batch:
        batch = batch_at(number)
        return Batch({**batch.inputs, "own_words": torch.tensor(number >= begins)}, batch.items)

    return marked


def _batches_of(samples: Samples, processor: Processor, features: Mapping[str, Features]) -> Callable[[int], Batch]:
    """Packed rows, batches of answers of like length or of prompts of like length, as the stage says."""
    stage, seed = samples.stage, samples.seed
    if stage.packing:
        tokens, share = stage.packing.tokens, stage.packing.share
        bundles = Bundles.of(
            samples.pool,
            lambda i: samples.prompt(i, processor, features),
            lambda i: samples.about(i) if share else None,
            tokens,
        )
        return packed(bundles, lambda members: samples.prompts(members, processor, features), tokens, seed)
    if stage.buckets:
        lengths = {index: samples.lengths[index] for index in samples.pool}
        return by_answer(lambda i: samples.prompt(i, processor, features), lengths, stage.buckets, seed)
    return like_length(lambda n: samples.prompt(samples.learned(n), processor, features), stage.batch_size, seed)


def _before(recipe: Recipe, name: str, out: Path) -> Path | None:
    """The trained parts of the stage that the recipe has before this one; None for its first."""
    files = [key for key, stage in recipe.stages.items() if isinstance(stage, FileStage)]
    if not (earlier := files[: files.index(name)]):
        return None
    trained = out / earlier[-1] / TRAINED
    if not trained.is_dir():
        raise BadInput(
            f"{trained}: no such folder; train the stage {earlier[-1]} into {out} first, or name trained parts with "
            "--after"
        )
    return trained


def _features(
    model: TrisenseForConditionalGeneration, processor: Processor, samples: Samples, recipe: Recipe, out: Path
) -> dict[str, Features]:
    """By sense, what the frozen encoders make of the samples' media."""
    design = recipe.design.model_dump(mode="json")
    features: dict[str, Features] = {}
    for name, media in samples.media().items():
        reads = processor.image if name == "image" else processor.audio
        if not media or reads is None:
            continue
        options = design["senses"][name]
        keys = ("vision", "pictures") if name == "image" else ("audio", "sounds")
        # A projector is no part of what features are made of.
        what = {key: design[key] for key in keys} | {"sense": {k: v for k, v in options.items() if k != "projector"}}
        sense = cast(Sense, model.senses[name])
        features[name] = frozen_features(sense, reads, media, out / "features", what, samples.selection.unreadable)
    return features
