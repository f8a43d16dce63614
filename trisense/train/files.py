"""Stages that learn from files of conversations, with pretrained parts: `caption` and `instruct`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from trisense.chat import Conversation, Image, Message, Text
from trisense.data.answers import prepare
from trisense.data.batches import Batch, by_answer, collate, like_length
from trisense.data.features import PictureFeatures, picture_features
from trisense.data.sources import Source
from trisense.errors import BadInput
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.model.trained import has_adapter, put_trained, save_trained, staged
from trisense.prompt import Processor, Prompt, featured
from trisense.recipe import FileStage, Recipe, ScheduledSampling
from trisense.tokens import TextTokenizer
from trisense.train.loop import CHECKPOINT, same_run, train

# One sample in so many, but at most HELD_BACK, is kept from training, to evaluate with.
ONE_IN = 10
HELD_BACK = 200
TRAINED = "trained"


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
    samples, a folder that began with another file or design, and whatever `load_design`, `put_trained` and `train`
    refuse.
    """
    stage = _stage(recipe, name)
    after = after or _before(recipe, name, out)
    source = Source.open(data, media, stage.turns)
    cuda = device == "auto" and torch.cuda.is_available()
    torch.manual_seed(seed)
    design = staged(recipe, name)
    model, processor = load_design(design, "cuda" if cuda else "cpu")
    if after is not None:
        put_trained(model, recipe.design, after)
    if stage.learns == "instruct" and not has_adapter(model):
        add_adapter(model, design)
    for key, parameter in model.language_model.named_parameters():
        parameter.requires_grad_(stage.learns == "instruct" and ".lora_" in key)
    if stage.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    samples = Samples.of(source, stage, processor.tokenizer, seed)
    run = {"data": sha256(data.read_bytes()).hexdigest(), "design": design.model_dump(mode="json")}
    begun = (out / name / CHECKPOINT).exists()
    same_run(out / name / "run.json", run, compared=("data", "design") if begun else ())
    features = _features(model, processor, samples, recipe, out)
    learner = Learner(model, stage.label_smoothing, stage.scheduled_sampling)
    held = [samples.prompt(index, processor, features) for index in samples.held]
    train(
        learner,
        _batches(samples, processor, features),
        stage,
        out / name,
        device=device,
        seed=seed,
        evaluate=lambda m: held_back_loss(m, held, stage.batch_size),
        sample=lambda m: _shown(m, held[:2], processor),
    )
    trained = out / name / TRAINED
    save_trained(model, recipe, name, trained)
    return trained


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
        """Inputs and output of the model's own forward. own_words: bool, whether scheduled sampling has begun."""
        if self.sampling and own_words is not None and bool(own_words):
            inputs["input_ids"] = self._with_own_words(inputs, self.sampling.first)
        out = self.model(**inputs)
        if self.label_smoothing:
            labels = inputs["labels"][:, 1:]
            targets = labels[labels != -100]
            count = inputs.get("num_items_in_batch", max(len(targets), 1))
            smooth = self.label_smoothing
            total = nn.functional.cross_entropy(out.logits.float(), targets, reduction="sum", label_smoothing=smooth)
            out.loss = total / count
        return out

    @torch.no_grad()
    def _with_own_words(self, inputs: dict[str, Any], first: int) -> torch.Tensor:
        """input_ids [B, T] with what the model says in place of an answer's tokens, the `first` aside.

        One teacher-forced pass says what it finds likeliest at every place (Mihaylova & Martins 2019,
        arXiv:1906.07651), where the published code ran one pass per token.
        """
        ids = inputs["input_ids"].clone()
        target = inputs["labels"][:, 1:] != -100  # [B, T - 1]
        logits = self.model(**inputs).logits  # [supervised, V]
        logits[:, list(self.model.placeholders.values())] = -torch.inf
        count = target.cumsum(1)
        before = torch.where(target, 0, count).cummax(1).values  # targets of the answers before this one
        own = target & (count - before > first)
        ids[:, 1:][own] = logits.argmax(-1)[own[target]]
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
    their longest answers, in tokens."""

    source: Source
    stage: FileStage
    pool: list[int]
    held: list[int]
    lengths: dict[int, int]
    seed: int
    _order: tuple[int, np.ndarray] | None = None  # of the round under way, and its number

    @classmethod
    def of(cls, source: Source, stage: FileStage, tokenizer: TextTokenizer, seed: int) -> Samples:
        """Raises BadInput when fewer than two samples have an answer that the stage takes."""
        limits = [limit for limit in (stage.answers.longest_tokens, max(stage.buckets or [0])) if limit]
        lengths = {}
        for index in range(len(source)):
            conversation = prepare(source[index], stage.answers)
            if conversation and (length := _longest_answer(conversation, tokenizer)) <= min(limits, default=length):
                lengths[index] = length
        usable = list(lengths)
        if len(usable) < 2:
            raise BadInput(f"{source.file}: {len(usable)} samples that this stage can use; expected two at least")
        random.Random(f"{seed}/held").shuffle(usable)
        held = max(1, min(HELD_BACK, len(usable) // ONE_IN))
        return cls(source, stage, sorted(usable[held:]), sorted(usable[:held]), lengths, seed)

    def learned(self, number: int) -> int:
        """Index in the source of the sample learned as `number`: every one once, in an order drawn anew each time."""
        turn, place = divmod(number, len(self.pool))
        if self._order is None or self._order[0] != turn:
            self._order = turn, np.random.default_rng((self.seed, turn)).permutation(len(self.pool))
        return self.pool[self._order[1][place]]

    def conversation(self, index: int) -> Conversation:
        prepared = prepare(self.source[index], self.stage.answers)
        assert prepared is not None
        return prepared

    def pictures(self) -> list[str]:
        return [
            part.image
            for index in (*self.pool, *self.held)
            for message in self.source[index].messages
            for part in message.content
            if isinstance(part, Image)
        ]

    def prompt(self, index: int, processor: Processor, features: PictureFeatures) -> Prompt:
        """The rendered sample, its pictures as features [S, E]."""
        messages = []
        for message in self.conversation(index).messages:
            content = tuple(Image(image=features[p.image]) if isinstance(p, Image) else p for p in message.content)
            messages.append(Message(role=message.role, content=content))
        return featured(Conversation(messages=tuple(messages)), processor)


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


def _batches(samples: Samples, processor: Processor, features: PictureFeatures) -> Callable[[int], Batch]:
    """The batch of a number: of answers of like length or of prompts of like length, as the stage says."""
    stage, seed = samples.stage, samples.seed
    if stage.buckets:
        lengths = {index: samples.lengths[index] for index in samples.pool}
        batch_at = by_answer(lambda i: samples.prompt(i, processor, features), lengths, stage.buckets, seed)
    else:
        batch_at = like_length(
            lambda n: samples.prompt(samples.learned(n), processor, features), stage.batch_size, seed
        )
    if stage.scheduled_sampling is None:
        return batch_at
    begins = round(stage.scheduled_sampling.after * stage.steps) * stage.accumulate

    def marked(number: int) -> Batch:
        batch = batch_at(number)
        return Batch({**batch.inputs, "own_words": torch.tensor(number >= begins)}, batch.items)

    return marked


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
) -> PictureFeatures:
    sense = cast(Sense, model.senses["image"])
    assert processor.image
    design = recipe.design.model_dump(mode="json")
    what = {key: design[key] for key in ("vision", "pictures")} | {"sense": design["senses"]["image"]}
    return picture_features(sense, processor.image, samples.pictures(), out / "features", what)


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
