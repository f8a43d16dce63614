"""Stages of training as data: what learns, from what, in what batches, how fast.

Typed models with their defaults; `trisense.recipe` reads them out of recipe files.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from trisense.chat import Layout

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Optimizer = Literal["adamw", "adamw-fused", "adamw8bit"]
Beta = Annotated[float, Field(ge=0, lt=1)]
# The parts of a model that may have a learning rate of their own.
PartName = Literal["encoder", "projector", "adapter", "language_model"]


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Contexts(Options):
    """The contexts that a language model learns from, and the questions about them; both are made as they are needed.

    present: chance of each sense to be part of a context. senses: a context has at most so many. turns: questions asked
    about one context. follow_up: chance that a question continues the conversation of the one before it; otherwise it
    is asked alone. joined: whether a context is drawn again (ten times at most) until a question that joins all its
    senses fits it. steps: whether answers that take a step between say it.
    """

    present: dict[Literal["image", "audio", "text"], float] = {"image": 0.85, "audio": 0.75, "text": 0.7}
    senses: Annotated[int, Field(ge=1, le=3)] = 3
    joined: bool = False
    steps: bool = True
    turns: Positive = 8
    follow_up: Annotated[float, Field(ge=0, le=1)] = 0.2


class Answers(Options):
    """How answers are prepared before they are learned. punctuation, stop_words: False removes them (`ft35`). longest,
    longest_tokens: samples with a longer answer, in characters or tokens, are left out (`tinyclip-phi2`)."""

    punctuation: bool = True
    stop_words: bool = True
    longest: Positive | None = None
    longest_tokens: Positive | None = None


class ScheduledSampling(Options):
    """The model's own words in place of the truth (Bengio et al. 2015, arXiv:1506.03099), as `tinyclip-phi2` learns
    captions: after the share `after` of the steps, every target but the `first` of an answer is learned after what the
    model itself finds likeliest for the ones before it."""

    after: Annotated[float, Field(ge=0, lt=1)] = 0.6
    first: Positive = 4


class Packing(Options):
    """Samples one behind the other in rows of at most `tokens` tokens, in place of padded batches of `batch_size`: a
    batch is one row, `accumulate` counts rows, and a sample that is longer has a row to itself. Loss and gradient are
    those of the same samples padded. share: samples about the same picture have it, and all they begin with alike, once
    in their row."""

    tokens: Positive = 1024
    share: bool = True


class OneCycle(Options):
    """The one-cycle policy (Smith 2018, arXiv:1803.09820), by the names and with the defaults of torch's `OneCycleLR`.

    The rate rises from `lr / div_factor` to `lr` in the share `pct_start` of the steps and falls to
    `lr / div_factor / final_div_factor`; with `three_phase` it first falls to where it began, in as many steps as it
    rose. cycle_momentum: the first of Adam's betas falls from `max_momentum` to `base_momentum` while the rate rises,
    and goes back; `betas` says the second alone then.
    """

    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    div_factor: Annotated[float, Field(ge=1)] = 25.0
    final_div_factor: Annotated[float, Field(ge=1)] = 1e4
    three_phase: bool = False
    cycle_momentum: bool = True
    base_momentum: Beta = 0.85
    max_momentum: Beta = 0.95

    @model_validator(mode="after")
    def _phases_fit(self) -> OneCycle:
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"pct_start: {self.pct_start:g} twice is more than all; three_phase takes 0.5 at most")
        return self


class Stage(Options):
    """One stage of training: what every kind of it has. steps count batches of `batch_size` x `accumulate`.

    lrs: learning rates of parts, in place of `lr`; they follow its schedule. warmup_steps: of every schedule but
    `one-cycle`, whose rise is one. betas, eps: of Adam. optimizer: `adamw-fused` makes all of a parameter's step in one
    kernel. compile: forward and backward of the model's blocks by `torch.compile`, evaluation as without it; it needs a
    C++ compiler on a CPU. `trisense bench train --options` measures what both are worth on a machine.
    """

    steps: Positive
    batch_size: Positive = 32
    accumulate: Positive = 1
    lr: Rate = 1e-3
    lrs: dict[PartName, Rate] = {}
    warmup_steps: int = 200
    schedule: Literal["cosine", "linear", "constant", "one-cycle"] = "cosine"
    one_cycle: OneCycle = OneCycle()
    optimizer: Optimizer = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: Rate = 1e-8
    weight_decay: float = 0.01
    clip: Rate = 1.0
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    log_every: Positive = 50
    evaluate_every: Positive = 500
    save_every: Positive = 500


class WarmupStage(Stage):
    """On pictures or sounds alone: `see` and `hear` train an encoder with the head of its projector. real: share of the
    batches that are real media, where a run has them."""

    learned_from: ClassVar[str] = "pictures and utterances of the small world"
    learns: Literal["see", "hear"]
    real: Share = 0.0


class WorldStage(Stage):
    """On questions about the small world: `read` trains the language model on media written in words, `answer` on what
    frozen encoders and projectors make of them. real: share of the contexts that are of real media, where a run has
    them."""

    learned_from: ClassVar[str] = "questions about the small world"
    learns: Literal["read", "answer"]
    contexts: Contexts = Contexts()
    real: Share = 0.0


class FileStage(Stage):
    """On files of conversations, with pretrained parts: `caption` trains the projectors, `instruct` the adapter and,
    unless `freeze_projector` says otherwise, the projectors with it.

    data: what the published run learned from. layout: in place of the design's. turns: each question with its answer
    is a sample of its own. rounds: the samples are split into so many disjoint subsets; one after the other is learned
    from for its share of the steps, each with the schedule from its beginning, going on from what the one before has
    trained (`ft35`, `eden`; warm restarts: Loshchilov & Hutter 2017, arXiv:1608.03983). label_smoothing: share of a
    target's probability that is spread over all tokens. buckets, packing: batches of answers of like length, or packed
    rows; default: of prompts of like length.
    """

    learns: Literal["caption", "instruct"]
    data: str = ""

    @property
    def learned_from(self) -> str:
        return self.data or "a file of conversations"

    layout: Layout | None = None
    answers: Answers = Answers()
    turns: bool = True
    buckets: Annotated[dict[Positive, Positive], Field(min_length=1)] | None = None
    packing: Packing | None = None
    scheduled_sampling: ScheduledSampling | None = None
    rounds: Positive = 1
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    freeze_projector: bool = False
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _projector_lr(cls, values: Any) -> Any:
        """Recipes saved before there was `lrs` had the projectors' rate under a key of its own."""
        if not isinstance(values, dict) or "projector_lr" not in values:
            return values
        values = dict(values)
        rate, lrs = values.pop("projector_lr"), values.get("lrs") or {}
        if rate is not None:
            if not isinstance(lrs, dict) or lrs.get("projector", rate) != rate:
                raise ValueError("projector_lr: an older name of lrs.projector, which is given too; leave it out")
            values["lrs"] = {**lrs, "projector": rate}
        return values

    @model_validator(mode="after")
    def _rounds_have_steps(self) -> FileStage:
        each, warming = self.steps // self.rounds, 0 if self.schedule == "one-cycle" else self.warmup_steps
        if self.rounds > 1 and each <= warming:
            raise ValueError(f"rounds: {self.rounds} of {each} steps, of which warmup_steps takes {warming}")
        return self

    @field_validator("packing")
    @classmethod
    def _one_way_to_batch(cls, packing: Packing | None, info: ValidationInfo) -> Packing | None:
        if packing and info.data.get("buckets"):
            raise ValueError("buckets are batches too; set buckets=null beside packing")
        return packing


class LanguageStage(Stage):
    """On plain text: `language` trains the design's tokenizer and its language model from nothing.

    data: what the published run learned from. block_size: tokens of a window of the packed text. held_back: share of
    the windows, at the end of the text, that is evaluated with and never learned.
    """

    learns: Literal["language"]
    data: str = ""
    block_size: Positive = 128
    held_back: Annotated[float, Field(gt=0, lt=1)] = 0.01

    @property
    def learned_from(self) -> str:
        return self.data or "plain text"


# Which class a stage is, by what it learns.
STAGES: dict[str, type[Stage]] = {
    learns: kind
    for kind in (WarmupStage, WorldStage, FileStage, LanguageStage)
    for learns in get_args(kind.model_fields["learns"].annotation)
}
AnyStage = Annotated[WarmupStage | WorldStage | FileStage | LanguageStage, Field(discriminator="learns")]
