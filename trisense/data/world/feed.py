"""A bank's media with frozen features -> conversations without end, any of them by its number."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from trisense.chat import Audio, Conversation, Image, Message, Text
from trisense.data.world.bank import Bank
from trisense.data.world.contexts import Context, make_context
from trisense.data.world.facts import Topic, Utterance
from trisense.data.world.questions import ask_any, ask_many
from trisense.data.world.single import Question
from trisense.prompt import Processor, Prompt, fan, featured
from trisense.stage import Contexts

# So often is a context drawn again in search of one whose senses can be joined.
REDRAWS = 10


@dataclass(frozen=True)
class Features:
    """What frozen encoders made of a bank: `images` float16 [P, S, E]; `audios` float16 [all S, E] one after the other,
    utterance i at `offsets[i] : offsets[i + 1]`."""

    images: np.ndarray
    audios: np.ndarray
    offsets: np.ndarray

    def audio(self, index: int) -> np.ndarray:
        return self.audios[self.offsets[index] : self.offsets[index + 1]]


@dataclass(frozen=True)
class Feed:
    """Training conversations over a bank. `conversations(i)` are the same for the same seed, whatever was asked before,
    so a resumed run continues where it stopped."""

    bank: Bank
    features: Features
    contexts: Contexts
    seed: int

    def conversations(self, number: int) -> list[tuple[Conversation, list[Question]]]:
        """Context `number` and `contexts.turns` questions about it, each in a conversation of its own or, with the
        chance `contexts.follow_up`, in that of the question before. Media parts hold features [S, E]."""
        rng = random.Random(f"{self.seed}/{number}")
        senses = {sense for sense, chance in self.contexts.present.items() if rng.random() < chance} or {"image"}
        senses = set(rng.sample(sorted(senses), min(len(senses), self.contexts.senses)))
        context, parts = self._draw(rng, senses)
        for _ in range(REDRAWS if self.contexts.joined else 0):
            if ask_any(rng, context, context.senses):
                break
            context, parts = self._draw(rng, senses)
        asked: list[list[Question]] = []
        for question in ask_many(rng, context, self.contexts.turns):
            if not self.contexts.steps:
                question = question.without_step()
            if asked and rng.random() < self.contexts.follow_up:
                asked[-1].append(question)
            else:
                asked.append([question])
        return [(converse(parts, questions), questions) for questions in asked]

    def _draw(self, rng: random.Random, senses: set[str]) -> tuple[Context, tuple[Image | Audio | Text, ...]]:
        """A context of these senses: its facts, and its parts with features."""
        picture = rng.randrange(len(self.bank.scenes))
        heard: list[int] = []

        def utter(rng: random.Random, topic: Topic, wish: dict) -> Utterance:
            heard.append(self.bank.utter(rng, topic, wish))
            return self.bank.utterances[heard[-1]]

        context = make_context(rng, "train", utter, senses, scene=self.bank.scenes[picture])
        parts: list[Image | Audio | Text] = []
        if context.scene:
            parts.append(Image(image=self.features.images[picture]))
        if heard:
            parts.append(Audio(audio=self.features.audio(heard[-1])))
        if context.note:
            parts.append(Text(text=context.note.text))
        return context, tuple(parts)

    def prompt(self, number: int, processor: Processor) -> Prompt:
        """Conversations `number`, rendered as one fan; `values` are the features in place of pixels and mels. It is
        empty when nothing that was tried fits the context."""
        prompts = [featured(conversation, processor) for conversation, _ in self.conversations(number)]
        return fan(prompts or [featured(Conversation(messages=()), processor)])

    def questions(self, number: int) -> list[Question]:
        """The questions of conversations `number` in the order of `prompt`."""
        return [question for _, questions in self.conversations(number) for question in questions]


def converse(context: tuple[Image | Audio | Text, ...], questions: list[Question]) -> Conversation:
    """The questions, one turn each, the context's parts before the first."""
    messages: list[Message] = []
    for turn, question in enumerate(questions):
        parts = (*context, Text(text=question.text)) if turn == 0 else (Text(text=question.text),)
        messages.append(Message(role="user", content=parts))
        messages.append(Message(role="assistant", content=(Text(text=question.answer),)))
    return Conversation(messages=tuple(messages))
