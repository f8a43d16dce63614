"""A conversation with its media read: the composition that both wings use, in numpy only.

`Processor.prompt` decodes and preprocesses every picture and sound, then renders. One folder describes a processor:
`tokenizer.json` and `processor_config.json`, which the heavy wing's `TrisenseProcessor` writes and reads too.

Letters: T tokens, H, W height and width in pixels, M mel bins, F frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from trisense.chat import Audio, Conversation, Image, Layout, Slot, bad_input, render
from trisense.errors import BadInput
from trisense.media import Limits, load_audio, load_image
from trisense.preprocess import AudioProcessor, ImageProcessor
from trisense.tokens import TextTokenizer

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "processor_config.json"
PROCESSOR_CLASS = "TrisenseProcessor"


@dataclass(frozen=True)
class Prompt:
    """ids: int64 [T]. mask: bool [T], True where supervised. `values[i]` is what the encoder of `media[i]` reads.

    That is float32 pixel_values [3, H, W] of a picture or input_features [M, F] of a sound. `branches`: int64 [T] in a
    prompt that `fan` made of several: 0 where all begin alike, k where the k-th goes on.
    """

    ids: np.ndarray
    mask: np.ndarray
    media: tuple[Slot, ...]
    values: tuple[np.ndarray, ...]
    branches: np.ndarray | None = None


def fan(prompts: Sequence[Prompt]) -> Prompt:
    """Prompts that begin with the same media and text as one: the beginning once, then how each of them goes on.

    No continuation sees another, and each keeps its positions, so the model computes for every prompt what it would
    compute for it alone, at a fraction of the cost (`trisense.data.batches.collate` makes the attention mask of it).
    Many questions about one context are learned so: in one long conversation a later question is answered by an earlier
    answer, and less is learned about the context.

    Raises ValueError for no prompt, or for prompts that do not share all their media.
    """
    if not prompts:
        raise ValueError("a fan needs at least one prompt")
    first = prompts[0]
    unsupervised = min(int(np.argmax(np.append(prompt.mask, True))) for prompt in prompts)
    beginnings = np.stack([prompt.ids[:unsupervised] for prompt in prompts])
    shared = int(np.argmin(np.append((beginnings == first.ids[:unsupervised]).all(0), False)))
    slots = [(slot.sense, slot.start, slot.length) for slot in first.media]
    for prompt in prompts:
        same = [(slot.sense, slot.start, slot.length) for slot in prompt.media] == slots
        if not same or any(a is not b for a, b in zip(prompt.values, first.values, strict=True)):
            raise ValueError("the prompts of a fan are about the same media")
    if any(start + length > shared for _, start, length in slots):
        raise ValueError("the prompts of a fan differ only after their media")
    parts = [np.arange(shared), *(np.arange(shared, len(prompt.ids)) for prompt in prompts)]
    return Prompt(
        ids=np.concatenate([first.ids[:shared], *(prompt.ids[shared:] for prompt in prompts)]),
        mask=np.concatenate([first.mask[:shared], *(prompt.mask[shared:] for prompt in prompts)]),
        media=first.media,
        values=first.values,
        branches=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
    )


class _Config(BaseModel):
    """What processor_config.json holds. The class's name is there for transformers' AutoProcessor."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    processor_class: str = PROCESSOR_CLASS
    image: ImageProcessor | None
    audio: AudioProcessor | None
    layout: Layout
    placeholders: dict[str, int]


@dataclass(frozen=True)
class Processor:
    """Everything between a `Conversation` and a model's inputs.

    `image` and `audio` are None for a model without eyes or ears. `placeholders` gives the token id that stands for one
    feature vector of each sense; nobody can write it: it is a special token or lies above the tokenizer's own ids.
    """

    tokenizer: TextTokenizer
    layout: Layout
    image: ImageProcessor | None
    audio: AudioProcessor | None
    placeholders: Mapping[str, int]
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        senses = {name for name, sense in (("image", self.image), ("audio", self.audio)) if sense is not None}
        if set(self.placeholders) != senses:
            raise BadInput(f"placeholders: got {sorted(self.placeholders)}, expected one for each of {sorted(senses)}")
        if len(set(self.placeholders.values())) != len(self.placeholders):
            raise BadInput(f"placeholders: {dict(self.placeholders)} share an id; give every sense its own")
        for sense, id in self.placeholders.items():
            if id < 0 or (id < self.tokenizer.size and id not in self.tokenizer.reserved):
                raise BadInput(
                    f"placeholders.{sense}: {id} is an ordinary token, which text could contain; use a special token "
                    f"or an id from {self.tokenizer.size} on"
                )
            for string in self.layout.strings():
                if id in self.tokenizer.control(string):
                    raise BadInput(
                        f"layout: {string!r} contains the placeholder of {sense}; only media are placed there"
                    )
        end = self.tokenizer.control(self.layout.answer.after)[-1:]
        if not self.tokenizer.reserved.issuperset(end):
            raise BadInput(
                f"layout.answer.after: {self.layout.answer.after!r} does not end in a special token of this tokenizer, "
                "so an answer could never end there; add the token to the tokenizer or correct the layout"
            )

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The ids that end an answer: the last of `layout.answer.after`; empty when the layout has none."""
        return frozenset(self.tokenizer.control(self.layout.answer.after)[-1:])

    def prompt(self, conversation: Conversation) -> Prompt:
        """Decodes and preprocesses every medium, then renders. Raises BadInput, for what `media` refuses too."""
        values: dict[int, np.ndarray] = {}  # by identity: one part is read once, wherever it stands

        def slots(part: Image | Audio) -> int:
            if id(part) not in values:
                values[id(part)] = self._values(part)
            if isinstance(part, Image):
                return self._eyes().tokens
            return self._ears().num_tokens(values[id(part)].shape[-1])

        rendered = render(conversation, self.layout, self.tokenizer, self.placeholders, slots)
        return Prompt(
            ids=rendered.ids,
            mask=rendered.mask,
            media=rendered.media,
            values=tuple(values[id(slot.part)] for slot in rendered.media),
        )

    def _values(self, part: Image | Audio) -> np.ndarray:
        if isinstance(part, Image):
            return self._eyes()(load_image(part.image, self.limits))  # [3, H, W]
        ears = self._ears()
        return ears(load_audio(part.audio, self.limits, ears.sampling_rate))  # [M, F]

    def _eyes(self) -> ImageProcessor:
        if self.image is None:
            raise BadInput("image: this model has no eyes; ask without pictures or choose another model")
        return self.image

    def _ears(self) -> AudioProcessor:
        if self.audio is None:
            raise BadInput(
                "audio: this model has no ears; ask without sounds, choose another model or name a Whisper (--speech)"
            )
        return self.audio

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes into processor_config.json."""
        config = _Config(image=self.image, audio=self.audio, layout=self.layout, placeholders=dict(self.placeholders))
        return config.model_dump(mode="json")

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes tokenizer.json and processor_config.json into `folder`, made if need be, and returns their paths.

        Each file is written aside and then renamed, so a reader never sees half of one.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            TOKENIZER_FILE: self.tokenizer.to_json(),
            CONFIG_FILE: json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n",
        }
        for name, text in texts.items():
            aside = folder / f".{name}.{os.getpid()}"
            try:
                aside.write_text(text, encoding="utf-8")
                aside.replace(folder / name)
            finally:
                aside.unlink(missing_ok=True)
        return [folder / name for name in texts]

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], limits: Limits | None = None) -> Processor:
        """Reads what `save` wrote. Raises BadInput naming the missing file, the unknown key or the wrong value."""
        folder = Path(folder)
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder; expected one with {CONFIG_FILE} and {TOKENIZER_FILE}")
        path = folder / CONFIG_FILE
        config = _read_config(path)
        if config.processor_class != PROCESSOR_CLASS:
            raise BadInput(f"{path}: processor_class is {config.processor_class!r}, expected {PROCESSOR_CLASS!r}")
        tokenizer = TextTokenizer.from_file(folder / TOKENIZER_FILE)
        try:
            return cls(tokenizer, config.layout, config.image, config.audio, config.placeholders, limits or Limits())
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None


def featured(conversation: Conversation, processor: Processor) -> Prompt:
    """Renders a conversation whose media parts already hold feature vectors [S, E]."""

    def array(part: Image | Audio) -> np.ndarray:
        return part.image if isinstance(part, Image) else part.audio

    rendered = render(
        conversation, processor.layout, processor.tokenizer, processor.placeholders, lambda part: len(array(part))
    )
    return Prompt(rendered.ids, rendered.mask, rendered.media, tuple(array(slot.part) for slot in rendered.media))


def _read_config(path: Path) -> _Config:
    if not path.is_file():
        raise BadInput(f"{path}: no such file; the folder of a model needs it")
    try:
        return _Config.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path}: not json ({error})") from None
    except ValidationError as error:
        raise bad_input(error, str(path)) from None
