"""What can be wrong with a stage without anybody noticing, looked for before its first step.

Every check has another way to its fact than training has: the loss is compared with one over whole rows of logits, the
training sequence with the prompt that answering renders, what learns with what has a gradient.

Letters: S feature vectors of one medium, E width of an encoder.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from trisense.chat import Conversation, Rendered, Text, dump
from trisense.data.batches import Batch
from trisense.errors import BadInput
from trisense.prompt import Prompt
from trisense.train.reference import branches, plain_loss

if TYPE_CHECKING:
    from trisense.train.files import Ready
    from trisense.train.learner import Learner
    from trisense.train.samples import Samples

# Samples that are looked at: so many spread over those to learn from, and as many with the longest answers.
LOOKED_AT = 3
# Lengths of projected vectors in those of the embeddings of the words beside them. What a layer adds to a position is
# about as large as an embedding: beside a vector a thousand times larger, bfloat16 with its 8 bits loses it, and
# float16 is near its end. A vector a thousand times smaller is noise, and the norm before a layer multiplies its
# gradient by as much.
LEAST_RATIO, GREATEST_RATIO = 1e-3, 1e3
# How far a mean loss may lie from the reference, relatively: rows are padded or packed differently there.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
ROUNDED = 2e-2  # where any part computes in 16 bits or fewer


@dataclass(frozen=True)
class Check:
    """What one check has found. said: where it is not ok, what is wrong and what to do."""

    name: str
    ok: bool
    said: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'WRONG':<7}{self.name:<12}{self.said}"


@dataclass(frozen=True)
class Sample:
    """A sample as it was read, and as it is learned."""

    number: int
    conversation: Conversation
    prompt: Prompt


class Wrong(Exception):
    """A check did not pass; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Case:
    """What the checks look at: a stage before its first step, some of its samples, and its first batch."""

    ready: Ready
    samples: list[Sample]
    batch: Batch

    @cached_property
    def device(self) -> torch.device:
        return next(self.ready.learner.parameters()).device

    @cached_property
    def step(self) -> tuple[float, frozenset[str]]:
        """The learner's loss of the batch, and the names of the parameters that have a gradient then."""
        learner = self.ready.learner
        # Scheduled sampling learns other tokens; the loss beneath is the same.
        inputs = {name: value for name, value in self.batch.to(self.device).inputs.items() if name != "own_words"}
        loss = learner(**inputs, num_items_in_batch=max(self.batch.items, 1)).loss
        if loss.requires_grad:
            loss.backward()
        moved = frozenset(name for name, p in learner.named_parameters() if p.grad is not None)
        for parameter in learner.parameters():
            parameter.grad = None
        return float(loss.detach()), moved

    @cached_property
    def media(self) -> dict[str, list[np.ndarray]]:
        """Features [S, E] of the samples' pictures and sounds, by sense."""
        found: dict[str, list[np.ndarray]] = {}
        for sample in self.samples:
            for slot, values in zip(sample.prompt.media, sample.prompt.values, strict=True):
                found.setdefault(slot.sense, []).append(values)
        return found


def examine(ready: Ready) -> list[Check]:
    """All checks of a stage before its first step, in the order of `CHECKS`.

    Costs about a step and as many single passes as the first batch has samples. Changes nothing: gradients, modes and
    random generators are what they were.
    """
    with _untouched(ready.learner):
        case = Case(ready, looked_at(ready), ready.batch_at(0))
        return [_checked(name, check, case) for name, check in CHECKS.items()]


def admit(ready: Ready) -> str:
    """The short form, in one line. Raises BadInput, naming the first check that is wrong."""
    checks = examine(ready)
    for check in checks:
        if not check.ok:
            raise BadInput(f"doctor: {check.name} is WRONG: {check.said} (--no-doctor trains all the same)")
    norms = next(check.said for check in checks if check.name == "norms")
    return f"doctor: {len(checks)} checks passed; {norms}"


def looked_at(ready: Ready) -> list[Sample]:
    """A few samples that are learned from: some spread over all of them, then those with the longest answers."""
    pool, lengths = ready.samples.pool, ready.samples.lengths
    spread = [pool[place * (len(pool) - 1) // max(LOOKED_AT - 1, 1)] for place in range(LOOKED_AT)]
    longest = sorted(pool, key=lambda index: -lengths[index])[:LOOKED_AT]
    indices = dict.fromkeys([*spread, *longest])
    return [Sample(index, ready.samples.conversation(index), ready.prompt_of(index)) for index in indices]


def some_of(samples: Samples, count: int) -> Samples:
    """At most `count` of the samples to learn from, the longest answers among them, and a few of those held back: for a
    look that does not wait for the features of all. They are one round."""
    pool = samples.pool
    spread = pool[:: -(-len(pool) // (count - count // 4))]
    longest = sorted(pool, key=lambda index: -samples.lengths[index])[: count // 4]
    stage = samples.stage.model_copy(update={"rounds": 1})
    return replace(samples, stage=stage, pool=sorted({*spread, *longest}), held=samples.held[: count // 4])


def shown(ready: Ready, colour: bool) -> Iterator[str]:
    """Three samples, one cell per token: pictures and sounds cyan, supervised green (without colour in « »)."""
    for sample in looked_at(ready)[:LOOKED_AT]:
        prompt = sample.prompt
        drawn = dump(Rendered(prompt.ids, prompt.mask, prompt.media), ready.processor.tokenizer, colour)
        yield f"sample {sample.number}: {len(prompt.ids)} tokens, {int(prompt.mask.sum())} supervised\n{drawn}"


def _supervised(case: Case) -> str:
    for sample in case.samples:
        if not sample.prompt.mask.any():
            raise Wrong(
                f"sample {sample.number} has no supervised token: does it have an answer, and the mask cover it?"
            )
    if not case.batch.items:
        raise Wrong("the first batch has no supervised token: look at how its labels are made")
    share = np.mean([sample.prompt.mask.mean() for sample in case.samples])
    return f"{share:.0%} of the tokens of {len(case.samples)} samples are learned"


def _end(case: Case) -> str:
    processor = case.ready.processor
    if not processor.end_ids:
        raise Wrong("no token ends an answer, so it would never stop: give the layout an answer.after")
    for sample in case.samples:
        for start, end in _runs(sample.prompt.mask):
            if int(sample.prompt.ids[end - 1]) not in processor.end_ids:
                raise Wrong(
                    f"an answer of sample {sample.number}, tokens {start} to {end}, is learned without the token that "
                    "ends it, so it would never stop: let the mask cover layout.answer.after"
                )
    return f"every answer ends with {_named(case, processor.end_ids)}, and that is learned"


def _whole(case: Case) -> str:
    tokenizer = case.ready.processor.tokenizer
    context = getattr(case.ready.learner.model.config.text_config, "max_position_embeddings", None)
    longest = 0
    for sample in case.samples:
        longest = max(longest, len(sample.prompt.ids))
        learned = [sample.prompt.ids[start:end].tolist() for start, end in _runs(sample.prompt.mask)]
        answers = [tokenizer.plain(_text(sample.conversation, place)) for place in _answers(sample.conversation)]
        for place, answer in enumerate(answers):
            if place >= len(learned) or learned[place][: len(answer)] != answer:
                raise Wrong(
                    f"answer {place + 1} of sample {sample.number} is {len(answer)} tokens, and not all are learned: "
                    "something cuts or changes it on the way"
                )
        if context is not None and len(sample.prompt.ids) > context:
            raise Wrong(
                f"sample {sample.number} has {len(sample.prompt.ids)} tokens, and the language model reads {context}: "
                "its answer lies beyond; leave long samples out or shorten what is asked"
            )
    return f"every answer is whole; the longest sample has {longest} tokens of {context or 'any number'}"


def _prefix(case: Case) -> str:
    """The prompt is made of the media themselves, by the very call that answering makes."""
    processor, count = case.ready.processor, 0
    for sample in case.samples:
        messages = sample.conversation.messages
        for place in _answers(sample.conversation):
            if place == 0 or messages[place - 1].role != "user":
                continue
            asked = processor.prompt(Conversation(messages=messages[:place])).ids
            ids, mask = sample.prompt.ids, sample.prompt.mask
            differs = np.flatnonzero(asked != ids[: len(asked)]) if len(asked) <= len(ids) else np.array([len(ids)])
            if len(differs):
                raise Wrong(
                    f"what answering renders of sample {sample.number} differs from what is learned, at token "
                    f"{differs[0]} of {len(asked)}: both must come from one layout, one tokenizer and the same media"
                )
            if not mask[len(asked) : len(asked) + 1].all():
                raise Wrong(
                    f"the prompt of sample {sample.number} ends at token {len(asked)}, and what follows is not "
                    "learned: the mask must begin where answering begins"
                )
            count += 1
    return f"{count} prompts as answering renders them begin their samples"


def _pad(case: Case) -> str:
    inputs = case.batch.inputs
    supervised = inputs["labels"] != -100
    padding = torch.zeros_like(supervised)
    if "segments" in inputs:
        padding = inputs["segments"] < 0
    elif (attention := inputs.get("attention_mask")) is not None:
        # Of who may look at whom, a place that sees no more than padding does not see the first.
        padding = attention == 0 if attention.dim() == 2 else ~attention[:, 0, :, 0]
    learned = int(supervised[:, 1:].sum())
    if wrong := int((supervised & padding).sum()):
        raise Wrong(f"{wrong} of {learned} supervised tokens are padding: labels must be -100 there")
    if learned > (real := sum(int(prompt.mask[1:].sum()) for prompt in case.batch.prompts)):
        raise Wrong(f"the first batch supervises {learned} tokens, and its samples only {real}: look at its labels")
    return f"{learned} tokens are learned in the first batch, {float(padding.float().mean()):.0%} of it is padding"


def _finite(case: Case) -> str:
    for name, media in case.media.items():
        if not all(np.isfinite(values).all() for values in media):
            raise Wrong(
                f"the {name} features hold nan or infinity: remove the folder `features` of the run, so that they are "
                "made anew, and look at the encoder's weights and precision if they come again"
            )
    counts = ", ".join(f"{sum(map(len, media))} {name} vectors" for name, media in case.media.items())
    return f"{counts or 'no picture or sound'} in {len(case.samples)} samples"


@torch.no_grad()
def _norms(case: Case) -> str:
    model = case.ready.learner.model
    ids = np.unique(np.concatenate([sample.prompt.ids for sample in case.samples]))
    ids = torch.from_numpy(np.setdiff1d(ids, list(model.placeholders.values()))).to(case.device)
    words = float(model.get_input_embeddings()(ids).float().norm(dim=-1).median())
    said = []
    for name, media in case.media.items():
        rows = [_features(values, case.device) for values in media]
        norm = float(torch.cat([model.senses[name](None, features=row) for row in rows]).float().norm(dim=-1).median())
        ratio = norm / words
        if not LEAST_RATIO <= ratio <= GREATEST_RATIO:
            raise Wrong(
                f"projected {name} vectors are {ratio:.2g} times as long as the embeddings beside them, expected "
                f"{LEAST_RATIO:g} to {GREATEST_RATIO:g}: the language model cannot use both; begin with other parts "
                f"(--after) or another senses.{name}.projector"
            )
        said.append(f"{name} vectors are {ratio:.2g} times as long as embeddings")
    return ", ".join(said) or "no picture or sound"


def _loss(case: Case) -> str:
    if not case.batch.prompts:
        raise Wrong("the first batch does not say which samples it holds: fill Batch.prompts where it is made")
    ours, _ = case.step
    model = case.ready.learner.model
    total, count = 0.0, 0
    for prompt in case.batch.prompts:
        for alone in branches(prompt):
            one, items = plain_loss(model, alone, case.ready.samples.stage.label_smoothing)
            total, count = total + one, count + items
    reference = total / max(count, 1)
    tolerance = max(TOLERANCE.get(p.dtype, ROUNDED) for p in model.parameters())
    if not abs(ours - reference) <= tolerance * max(abs(reference), 1.0):
        raise Wrong(
            f"the loss of the first batch is {ours:.5f}, and a plain one, token t + 1 from what stands up to t, "
            f"{reference:.5f}: labels are shifted twice or not at all, samples see each other, or items are miscounted"
        )
    return f"{ours:.5f} is what a plain loss gives, every token from those before it"


def _frozen(case: Case) -> str:
    learner, stage = case.ready.learner, case.ready.samples.stage
    _, moved = case.step
    parameters = dict(learner.named_parameters())
    own = {name for name in parameters if stage.learns == "instruct" and ".lora_" in name}
    own |= {name for name in parameters if not stage.freeze_projector and ".projector." in name}
    if not own:
        raise Wrong("nothing learns: a stage that learns captions has its projectors only; leave freeze_projector out")
    learning = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if strange := sorted((learning | moved) - own):
        raise Wrong(f"{len(strange)} parameters that are no part of the stage learn, such as {strange[0]}: freeze them")
    shown = {slot.sense for prompt in case.batch.prompts for slot in prompt.media}
    expected = {n for n in own if ".projector." not in n or any(f".senses.{sense}." in n for sense in shown)}
    if still := sorted((own - learning) | (expected - moved)):
        raise Wrong(f"{len(still)} parameters of the stage have no gradient, such as {still[0]}: let them require one")
    if not moved:
        raise Wrong("nothing has a gradient: the first batch shows no picture or sound to the projectors that learn")
    count = sum(parameters[name].numel() for name in own)
    return f"{count:,} parameters learn, {sum(p.numel() for p in parameters.values()) - count:,} are frozen"


CHECKS: dict[str, Callable[[Case], str]] = {
    "supervised": _supervised,
    "end": _end,
    "whole": _whole,
    "prefix": _prefix,
    "pad": _pad,
    "features": _finite,
    "norms": _norms,
    "loss": _loss,
    "frozen": _frozen,
}


def _checked(name: str, check: Callable[[Case], str], case: Case) -> Check:
    try:
        return Check(name, True, check(case))
    except Wrong as wrong:
        return Check(name, False, str(wrong))


def _features(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))[None].to(device)  # [1, S, E]


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where a mask is True: (start, end) of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _answers(conversation: Conversation) -> list[int]:
    return [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]


def _text(conversation: Conversation, place: int) -> str:
    return "".join(part.text for part in conversation.messages[place].content if isinstance(part, Text))


def _named(case: Case, ids: Sequence[int] | frozenset[int]) -> str:
    return ", ".join(str(case.ready.processor.tokenizer.token(one)) for one in sorted(ids))


@contextmanager
def _untouched(learner: Learner) -> Iterator[None]:
    """Within it the learner is in eval mode, but for its checkpointed layers, and on one device; after it, its modes,
    its devices and all random generators are what they were."""
    senses, language_model = learner.model.senses, learner.model.language_model
    # A language model that is going to be sharded waits beside its GPU.
    places = {name: next(sense.parameters()).device for name, sense in senses.items()}
    senses.to(next(language_model.parameters()).device)
    modes = [(module, module.training) for module in learner.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    for module in learner.modules():
        # Where a stage computes activations twice to save memory, the look must too: it takes a step's memory. What
        # drops out is not among these modules.
        module.training = bool(getattr(module, "gradient_checkpointing", False))
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for module, mode in modes:
            module.training = mode
        for name, place in places.items():
            senses[name].to(place)
