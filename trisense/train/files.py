"""Stages that learn from files of conversations, with pretrained parts: `caption` and `instruct`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisense.assistant.transcribe import Transcript, with_transcripts
from trisense.chat import Audio, Conversation, Image, Message, Part, Text
from trisense.data.answers import prepare
from trisense.data.batches import Batch, by_answer, collate, like_length
from trisense.data.features import Features, frozen_features
from trisense.data.packing import Bundles, packed
from trisense.data.rounds import disjoint, one_after_another
from trisense.data.sources import Source
from trisense.data.transcripts import transcripts
from trisense.errors import BadInput
from trisense.model.attention import SEGMENTS
from trisense.model.loss import fuse_activations
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.model.trained import has_adapter, put_trained, save_trained, staged
from trisense.prompt import Processor, Prompt, featured
from trisense.recipe import FileStage, Recipe, ScheduledSampling
from trisense.tokens import TextTokenizer
from trisense.train.loop import CHECKPOINT, processes, same_run, train
from trisense.train.optim import round_starts

# One sample in so many, but at most HELD_BACK, is kept from training, to evaluate with.
ONE_IN = 10
HELD_BACK = 200
TRAINED = "trained"
# By sense and path: features on disk, or some of them.
Shown = Mapping[str, Features] | Mapping[str, Mapping[str, np.ndarray]]


def train_stage(
    recipe: Recipe,
    name: str,
    data: Path,
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Path:
    """Trains one stage of a recipe on a file of conversations; the folder of the trained parts, `out/NAME/trained`.

    media: the folder of the pictures that the file names. after: trained parts to begin with; default: those of the
    recipe's stage before, in the same `out`. device: `auto` or `cpu`. The same call goes on where one was stopped.
    Raises BadInput for a stage that learns from something else, a stage before that was not trained, a file without
    samples or with fewer than rounds, a folder that began with another file or design, and whatever `load_design`,
    `put_trained` and `train` refuse.
    """
    ready = get_ready(recipe, name, data, out, media=media, after=after, device=device, seed=seed)
    stage, held, processor = ready.samples.stage, ready.held, ready.processor
    same_run(out / name / "run.json", ready.run, compared=())
    train(
        ready.learner,
        ready.batch_at,
        stage,
        out / name,
        device=device,
        seed=seed,
        evaluate=lambda m: held_back_loss(m, held, stage.batch_size),
        sample=lambda m: _shown(m, held[:2], processor),
    )
    trained = out / name / TRAINED
    save_trained(ready.learner.model, recipe, name, trained)
    return trained


@dataclass(frozen=True)
class Ready:
    """A stage before its first step. held: the samples to evaluate with. run: what a run of it remembers."""

    learner: Learner
    batch_at: Callable[[int], Batch]
    samples: Samples
    held: list[Prompt]
    processor: Processor
    run: dict[str, Any]


def get_ready(
    recipe: Recipe,
    name: str,
    data: Path,
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Ready:
    """Everything that `train_stage` trains with, by the same arguments; of `out` nothing changes but what is made of
    the media once. Raises BadInput as `train_stage`."""
    stage = _stage(recipe, name)
    after = after or _before(recipe, name, out)
    source = Source.open(data, media, stage.turns)
    cuda = device == "auto" and torch.cuda.is_available()
    torch.manual_seed(seed)
    design = staged(recipe, name)
    model, processor = load_design(design, "cuda" if cuda else "cpu")
    if after is not None:
        put_trained(model, recipe, after)
    if stage.learns == "instruct" and not has_adapter(model):
        add_adapter(model, design)
    for key, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(stage.learns == "instruct" and ".lora_" in key)
    if stage.packing and not cuda:
        model.language_model.set_attn_implementation(SEGMENTS)
    if stage.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    heard: Mapping[str, Transcript] = {}
    if recipe.audio == "transcript" and recipe.answering.speech:
        heard = transcripts(media_in(source)["audio"], recipe.answering.speech, device, out)
    samples = Samples.of(source, stage, processor.tokenizer, seed, heard)
    run = {"data": sha256(data.read_bytes()).hexdigest(), "design": design.model_dump(mode="json")}
    if (out / name / CHECKPOINT).exists():
        same_run(out / name / "run.json", run, compared=run)
    features = _features(model, processor, samples, recipe, out)
    for sense in model.senses.values():  # has done its work
        sense.encoder = nn.Identity()
    fuse_activations(model)
    learner = Learner(model, stage.label_smoothing, stage.scheduled_sampling)
    held = [samples.prompt(index, processor, features) for index in samples.held]
    return Ready(learner, _batches(samples, processor, features), samples, held, processor, run)


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
    their longest answers, in tokens. transcripts: of their sounds, for a model without ears."""

    source: Source
    stage: FileStage
    pool: list[int]
    held: list[int]
    lengths: dict[int, int]
    seed: int
    transcripts: Mapping[str, Transcript] = field(default_factory=dict)
    _order: tuple[int, np.ndarray] | None = None  # of the round under way, and its number

    @classmethod
    def of(
        cls,
        source: Source,
        stage: FileStage,
        tokenizer: TextTokenizer,
        seed: int,
        transcripts: Mapping[str, Transcript] | None = None,
    ) -> Samples:
        """Raises BadInput when fewer than two samples have an answer that the stage takes."""
        limits = [limit for limit in (stage.answers.longest_tokens, max(stage.buckets or [0])) if limit]
        lengths = {}
        for index in range(len(source)):
            conversation = _prepared(source, index, stage, transcripts or {})
            if conversation and (length := _longest_answer(conversation, tokenizer)) <= min(limits, default=length):
                lengths[index] = length
        usable = list(lengths)
        if len(usable) < 2:
            raise BadInput(f"{source.file}: {len(usable)} samples that this stage can use; expected two at least")
        random.Random(f"{seed}/held").shuffle(usable)
        held = max(1, min(HELD_BACK, len(usable) // ONE_IN))
        return cls(source, stage, sorted(usable[held:]), sorted(usable[:held]), lengths, seed, transcripts or {})

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
            raise BadInput(f"{self.source.file}: rounds: {count}, but only {len(pool)} samples to learn from")
        return [replace(self, pool=part, _order=None) for part in disjoint(pool, count, self.seed)]

    def conversation(self, index: int) -> Conversation:
        prepared = _prepared(self.source, index, self.stage, self.transcripts)
        assert prepared is not None
        return prepared

    def media(self) -> dict[str, list[str]]:
        """Paths of the pictures and sounds that the model is shown, by sense."""
        return media_in(self.conversation(index) for index in (*self.pool, *self.held))

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


def _prepared(
    source: Source, index: int, stage: FileStage, transcripts: Mapping[str, Transcript]
) -> Conversation | None:
    """A sample as the stage wants it; None when it does not."""
    conversation = prepare(source[index], stage.answers)
    if conversation is None or not transcripts:
        return conversation
    try:
        return with_transcripts(conversation, lambda sound: transcripts[str(sound)])[0]
    except BadInput as error:
        raise BadInput(f"{source.file}: record {index}: {error}") from None


def media_in(conversations: Iterable[Conversation]) -> dict[str, list[str]]:
    """Paths of pictures and sounds, by sense."""
    found: dict[str, list[str]] = {"image": [], "audio": []}
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


def _longest_answer(conversation: Conversation, tokenizer: TextTokenizer) -> int:
    """In tokens, its end not counted."""
    answers = [message.content for message in conversation.messages if message.role == "assistant"]
    texts = ["".join(part.text for part in answer if isinstance(part, Text)) for answer in answers]
    return max((len(tokenizer.plain(text)) for text in texts), default=0)


def _batches(samples: Samples, processor: Processor, features: Mapping[str, Features]) -> Callable[[int], Batch]:
    """The batch of a number, from the round that has it."""
    stage = samples.stage
    width = stage.accumulate * processes()
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
    """By sense, what the frozen encoders make of the samples' media. Raises BadInput for media of another sense."""
    design = recipe.design.model_dump(mode="json")
    features: dict[str, Features] = {}
    for name, paths in samples.media().items():
        reads = processor.image if name == "image" else processor.audio
        if not paths:
            continue
        if reads is None:
            lacks = "eyes" if name == "image" else "ears, and its recipe names no Whisper (answering.speech)"
            raise BadInput(f"{samples.source.file}: shows {paths[0]}, and {recipe.name} has no {lacks}")
        options = design["senses"][name]
        keys = ("vision", "pictures") if name == "image" else ("audio", "sounds")
        # A projector is no part of what features are made of.
        what = {key: design[key] for key in keys} | {"sense": {k: v for k, v in options.items() if k != "projector"}}
        sense = cast(Sense, model.senses[name])
        features[name] = frozen_features(sense, reads, paths, out / "features", what)
    return features


@torch.inference_mode()
def held_back_loss(learner: Learner, prompts: list[Prompt], size: int) -> dict[str, float]:
    """Mean loss per token of an answer, and the share of tokens that are the likeliest, on samples held back."""
    device = next(p for p in learner.parameters() if p.requires_grad).device
    total, right, count = 0.0, 0, 0
    for start in range(0, len(prompts), size):
        batch = collate(prompts[start : start + size]).to(device)
        out = learner.model(**batch.inputs, num_items_in_batch=1)
        labels = batch.inputs["labels"][:, 1:]
        total += float(out.loss)
        right += int((out.logits.argmax(-1) == labels[labels != -100]).sum())
        count += batch.items
    return {"held_loss": total / count, "held_right": right / count}


def _shown(learner: Learner, prompts: list[Prompt], processor: Processor) -> str:
    """Answers to held-back questions beside the truth."""
    device = next(p for p in learner.parameters() if p.requires_grad).device
    decode: Callable[[list[int]], str] = processor.tokenizer.decode
    lines = []
    for prompt in prompts:
        length = int(np.flatnonzero(prompt.mask)[0])
        media = {name: t for name, t in collate([prompt]).to(device).inputs.items() if name.endswith("features")}
        ids = torch.from_numpy(prompt.ids[None, :length]).to(device)
        said = learner.model.generate(
            cast(torch.LongTensor, ids),
            **media,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=list(processor.end_ids),
        )
        truth = decode(prompt.ids[prompt.mask].tolist())
        lines.append(f"\n  {decode(said[0, length:].tolist()).strip()} | {truth.strip()}")
    return "".join(lines)
