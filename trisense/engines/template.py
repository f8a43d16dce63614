"""A conversation for any model of transformers: through its own processor and chat template, with this package's media.

What a user types stays text here too. The layout is a template of whoever made the model, so that cannot be had by
construction as in `trisense.chat.render`; it is checked instead, for every conversation: with every text replaced by a
harmless one the template must write the same control tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trisense.chat import Audio, Conversation, Image, Message
from trisense.errors import BadInput
from trisense.media import Limits, load_audio, load_image
from trisense.prompt import Prompt

# Stands for any text without control tokens.
HARMLESS = "x"

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class TemplatePrompt(Prompt):
    """A prompt as the model's own processor made it. `inputs` holds all that its `generate` takes, tensors by name.

    Pictures and sounds are in there in whatever form the model reads; `media` and `values` are empty.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)


class Answers:
    """Ids of an answer -> text, without the tokenizer's special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int], /) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


class TemplateProcessor:
    """What `trisense.prompt.Processor` is to a model of this package: conversation -> prompt.

    `sees` and `hears` say what the processor beneath can read. The parts of a message stay in their order, as models
    of this kind are trained on any; texts that follow each other are set apart by an empty line, since templates write
    nothing between them.
    """

    def __init__(self, processor: Any, where: str, limits: Limits | None = None) -> None:
        """processor: of transformers, or the tokenizer of a model that only reads; where: the folder, for messages.

        Raises BadInput when it has no tokenizer or no chat template.
        """
        tokenizer = getattr(processor, "tokenizer", processor)
        if not hasattr(tokenizer, "apply_chat_template"):
            raise BadInput(f"{where}: found no tokenizer, only a {type(processor).__name__}; add tokenizer.json")
        # Folders of some age keep the template of the whole processor with the tokenizer.
        own = getattr(processor, "chat_template", None)
        template = own or tokenizer.chat_template
        if not template:
            raise BadInput(
                f"{where}: has no chat template, which says how a conversation is written for this model; add the one "
                "that its authors publish as chat_template.jinja"
            )
        self.tokenizer = Answers(tokenizer)
        self.sees = getattr(processor, "image_processor", None) is not None
        ears = getattr(processor, "audio_processor", None) or getattr(processor, "feature_extractor", None)
        self._sampling_rate = getattr(ears, "sampling_rate", None)
        self.hears = self._sampling_rate is not None
        self._only_reads = processor is tokenizer
        self._processor, self._tokenizer, self._where = processor, tokenizer, where
        self._template = None if own else template
        self._limits = limits or Limits()
        written = "\0".join(template.values()) if isinstance(template, Mapping) else template
        # As `sanitize_control_tokens` of transformers counts them: a word added to a vocabulary is no control token.
        self._control: dict[int, str] = {
            int(id): token.content
            for id, token in tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (token.special or token.content in written)
        }

    def prompt(self, conversation: Conversation, /) -> TemplatePrompt:
        """Decodes every medium and has the model's processor write the conversation, ready to be answered.

        Raises BadInput for what `media` refuses, for a sense that the model lacks, for a conversation that its template
        refuses, and for a control token in a text that the tokenizer cannot read as text.
        """
        if not conversation.messages:
            raise BadInput("the conversation is empty; expected a question")
        messages = [self._message(message) for message in conversation.messages]
        harmless = [_harmless(message) for message in messages]
        found, expected = self._written(messages), self._written(harmless)
        if found == expected:
            inputs = self._inputs(messages)
        else:
            typed = next(token for id, token in self._control.items() if found[id] != expected[id])
            inputs = self._as_text(messages, harmless, typed)
        ids = inputs["input_ids"][0].numpy().astype(np.int64)  # [T]
        return TemplatePrompt(ids, np.zeros(len(ids), np.bool_), (), (), inputs=inputs)

    def _message(self, message: Message) -> dict[str, Any]:
        parts: Messages = []
        for part in message.content:
            if isinstance(part, Image):
                parts.append({"type": "image", "image": self._picture(part)})
            elif isinstance(part, Audio):
                parts.append({"type": "audio", "audio": self._sound(part)})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += f"\n\n{part.text}"
            else:
                parts.append({"type": "text", "text": part.text})
        if self._only_reads:
            return {"role": message.role, "content": "".join(part["text"] for part in parts)}
        return {"role": message.role, "content": parts or [{"type": "text", "text": ""}]}

    def _picture(self, part: Image) -> Any:
        if not self.sees:
            raise BadInput("image: this model has no eyes; ask without pictures or choose another model")
        return load_image(part.image, self._limits)

    def _sound(self, part: Audio) -> np.ndarray:
        if self._sampling_rate is None:
            raise BadInput("audio: this model has no ears; ask without sounds or choose another model")
        return load_audio(part.audio, self._limits, self._sampling_rate)

    def _as_text(self, messages: Messages, harmless: Messages, token: str) -> Mapping[str, Any]:
        """The inputs of a conversation in which somebody typed `token`, read as plain text."""
        refusal = BadInput(f"text: {token!r} is a control token of this model, not to be read as text; remove it")
        try:
            inputs = self._inputs(messages, sanitize_control_tokens=True)
        except BadInput:  # some processors and tokenizers cannot, and older versions of transformers
            raise refusal from None
        if self._counted(inputs["input_ids"][0]) != self._counted(self._inputs(harmless)["input_ids"][0]):
            raise refusal
        return inputs

    def _written(self, messages: Messages) -> Counter[int]:
        """How often the template writes each control token, media not expanded."""
        text = self._apply(messages, tokenize=False)
        return self._counted(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _counted(self, ids: Any) -> Counter[int]:
        return Counter(id for id in map(int, ids) if id in self._control)

    def _inputs(self, messages: Messages, **options: Any) -> Mapping[str, Any]:
        return self._apply(messages, tokenize=True, return_dict=True, return_tensors="pt", **options)

    def _apply(self, messages: Messages, **options: Any) -> Any:
        try:
            return self._processor.apply_chat_template(
                messages, chat_template=self._template, add_generation_prompt=True, **options
            )
        except Exception as error:  # whatever the template and the processor of somebody else's model raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BadInput(f"{self._where}: this model does not take the conversation ({reason})") from error


def _harmless(message: dict[str, Any]) -> dict[str, Any]:
    """The message with every text replaced; an empty one stays, as templates may leave it out."""

    def replaced(text: str) -> str:
        return HARMLESS if text.strip() else text

    content = message["content"]
    if isinstance(content, str):
        return message | {"content": replaced(content)}
    parts = [part | {"text": replaced(part["text"])} if part["type"] == "text" else part for part in content]
    return message | {"content": parts}
