"""Samples that a stage on files holds back: its loss on them, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from trisense.chat import Conversation, Image, Text
from trisense.data.batches import collate
from trisense.media import load_image
from trisense.prompt import Prompt
from trisense.train.report import Answer

if TYPE_CHECKING:
    from trisense.train.files import Ready
    from trisense.train.learner import Learner

# So many are answered, to be looked at.
SHOWN = 4


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


def shown_answers(learner: Learner, ready: Ready) -> list[Answer]:
    """Answers to held-back questions beside the truth, with the picture that was asked about."""
    device = next(p for p in learner.parameters() if p.requires_grad).device
    processor = ready.processor
    decode: Callable[[list[int]], str] = processor.tokenizer.decode
    answers = []
    for index, prompt in zip(ready.samples.held[:SHOWN], ready.held, strict=False):
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
        asked, picture = _asked(ready.samples.conversation(index))
        answers.append(Answer(asked, decode(said[0, length:].tolist()).strip(), truth.strip(), picture))
    return answers


def _asked(conversation: Conversation) -> tuple[str, np.ndarray | None]:
    """The first question of a conversation, and its picture, uint8 [H, W, 3]."""
    parts = conversation.messages[0].content
    pictures = [part.image for part in parts if isinstance(part, Image)]
    picture = np.asarray(load_image(pictures[0])) if pictures else None
    return "".join(part.text for part in parts if isinstance(part, Text)), picture
