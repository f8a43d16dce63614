"""How well a model in training answers: to the letter, and for the eye."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from trisense.data.batches import collate
from trisense.data.real.feed import Conversations
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.prompt import Processor
from trisense.train.report import Answer
from trisense.train.words import Read


@torch.inference_mode()
def answer_accuracy(
    model: TrisenseForConditionalGeneration | Read, processor: Processor, feed: Conversations, numbers: list[int]
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
    model: TrisenseForConditionalGeneration, processor: Processor, feed: Conversations, numbers: list[int]
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
