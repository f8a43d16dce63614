"""`TrisenseProcessor`: the ground floor's `Processor` in the clothes that transformers expects.

Letters: B conversations, T positions, N media of a sense in the batch, H, W pixels, M mel bins, F frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils.hub import cached_file

from trisense.chat import Audio, Conversation, Image, Text, conversation_from, openai_part
from trisense.errors import BadInput
from trisense.prompt import CONFIG_FILE, TOKENIZER_FILE, Processor, Prompt
from trisense.tokens import TextTokenizer

INPUT_NAMES = ["input_ids", "attention_mask", "pixel_values", "input_features", "input_features_mask"]
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "proxies", "subfolder")


class TrisenseProcessor(ProcessorMixin):
    """Questions or conversations to the inputs of `TrisenseForConditionalGeneration`.

    A thin cover over `trisense.prompt.Processor`, which does the work and which reads the very same folder without
    transformers. `tokenizer` is there for decoding and for libraries that look for one; prompts are never made with it.
    """

    def __init__(self, processor: Processor):
        super().__init__()
        self.processor = processor
        self.tokenizer = _pretrained_tokenizer(processor)
        self.image_token_id = processor.placeholders.get("image")
        self.audio_token_id = processor.placeholders.get("audio")

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Asks one question (`text` a str) or a batch of them (a list), written as plain text, never as a template.

        Args:
            text: the question or questions; special tokens written in them stay plain text.
            images, audio: for one question one source or a list of them, for a batch a list with one entry per
                question: a source, a list of sources or None. Sources are what `trisense.media` reads: a path, bytes,
                a `data:` URL, an array, (array, rate) for a sound, a PIL image.
            kwargs: `return_tensors` ("pt", "np" or None), `padding`, `padding_side`; also nested, as `text_kwargs`.

        Returns:
            What `batch` returns.
        """
        options = _options(kwargs)
        if text is None:
            raise BadInput("text: a question is needed; give a str or a list of them")
        questions = [text] if isinstance(text, str) else list(text)
        if isinstance(text, str):
            shown, heard = [images], [audio]
        else:
            shown, heard = (
                _per_question(name, media, len(questions)) for name, media in (("images", images), ("audio", audio))
            )
        conversations = [
            Conversation.ask(question, _sources(pictures), _sources(sounds))
            for question, pictures, sounds in zip(questions, shown, heard, strict=True)
        ]
        return self.batch([self.processor.prompt(conversation) for conversation in conversations], **options)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride] - the same call, other defaults
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = True,
        processor_kwargs: Mapping[str, Any] | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> BatchFeature | Any:
        """A conversation, or a list of them, through the layout of this processor.

        Args:
            conversation: a `Conversation`, or messages in OpenAI's or transformers' style: parts `text`, `image_url`,
                `input_audio`, or `image` and `audio` with a source under their own name, `url` or `path`.
            chat_template: must be None; the layout is the template.
            add_generation_prompt: end with the markers that begin an answer.
            continue_final_message: leave the last answer open, without its end token.
            return_assistant_tokens_mask: add `assistant_masks` [B, T], 1 where an answer is supervised.
            tokenize: must be True: a prompt in one string could not tell typed text from control tokens.
            sanitize_control_tokens: must be True: typed text is plain text, always.
            return_tensors, processor_kwargs, kwargs: as in `__call__`.

        Returns:
            What `batch` returns, or only its `input_ids` with `return_dict=False`.
        """
        if chat_template is not None:
            raise BadInput("chat_template: not used here; the layout in processor_config.json is the template")
        if not tokenize or not sanitize_control_tokens:
            name = "sanitize_control_tokens" if tokenize else "tokenize"
            raise BadInput(f"{name}: only True is supported, so that typed text never becomes a control token")
        options = _options({"return_tensors": return_tensors, **kwargs, **(processor_kwargs or {})})
        prompts = []
        for messages in _batched(conversation):
            record = messages if isinstance(messages, Conversation) else conversation_from(messages, _part)
            prompts.append(self._ended(record, add_generation_prompt, continue_final_message))
        features = self.batch(prompts, assistant_masks=return_assistant_tokens_mask, **options)
        return features if return_dict else features["input_ids"]

    def _ended(self, conversation: Conversation, generation: bool, continued: bool) -> Prompt:
        """The prompt with the end that was asked for: `render` opens an answer after a user and closes every answer."""
        prompt = self.processor.prompt(conversation)
        control, answer = self.processor.tokenizer.control, self.processor.layout.answer
        ends_with = conversation.messages[-1].role
        ids, mask = prompt.ids, prompt.mask
        if continued:
            if generation or ends_with != "assistant":
                raise BadInput("continue_final_message: needs a last message of the assistant and no generation prompt")
            kept = len(ids) - len(control(answer.after))
            ids, mask = ids[:kept], mask[:kept]
        elif generation and ends_with != "user":
            before = control(answer.before)
            ids = np.concatenate([ids, np.array(before, np.int64)])
            mask = np.concatenate([mask, np.zeros(len(before), np.bool_)])
        elif not generation and ends_with == "user":
            kept = len(ids) - len(control(answer.before))
            ids, mask = ids[:kept], mask[:kept]
        return Prompt(ids, mask, prompt.media, prompt.values)

    def batch(
        self,
        prompts: Sequence[Prompt],
        *,
        return_tensors: str | None = None,
        padding: bool = True,
        padding_side: str = "left",
        assistant_masks: bool = False,
    ) -> BatchFeature:
        """Prompts as one batch, left padded, so that every row is continued at its last position.

        Returns:
            input_ids, attention_mask [B, T] int64 (lists of lists without padding); pixel_values [N, 3, H, W] float32
            if there are pictures; input_features [N, M, F] float32 and input_features_mask [N, F] int64 if there are
            sounds, shorter ones padded with zeros. Media stand in the order of their placeholders, row by row.
        """
        rows: dict[str, list[np.ndarray]] = {
            "input_ids": [prompt.ids for prompt in prompts],
            "attention_mask": [np.ones(len(prompt.ids), np.int64) for prompt in prompts],
        }
        if assistant_masks:
            rows["assistant_masks"] = [prompt.mask.astype(np.int64) for prompt in prompts]
        data: dict[str, Any] = {name: [row.tolist() for row in values] for name, values in rows.items()}
        if padding or len({len(prompt.ids) for prompt in prompts}) == 1:
            fill = {"input_ids": self.pad_token_id}
            data = {name: _padded(values, fill.get(name, 0), padding_side) for name, values in rows.items()}
        elif return_tensors is not None:
            raise BadInput("padding: conversations of different lengths make no tensor; set padding=True")

        values = {
            sense: [
                v
                for prompt in prompts
                for slot, v in zip(prompt.media, prompt.values, strict=True)
                if slot.sense == sense
            ]
            for sense in ("image", "audio")
        }
        if values["image"]:
            data["pixel_values"] = np.stack(values["image"])  # [N, 3, H, W]
        if values["audio"]:
            data["input_features"], data["input_features_mask"] = _padded_frames(values["audio"])
        return BatchFeature(data, tensor_type=return_tensors)

    @property
    def pad_token_id(self) -> int:
        """Fills the left of shorter rows, masked: the end of an answer, or any id that no medium would replace."""
        free = (i for i in range(len(self.processor.placeholders) + 1) if i not in self.processor.placeholders.values())
        return min(self.processor.end_ids, default=next(free))

    @property
    def model_input_names(self) -> list[str]:
        """The names of what `batch` makes."""
        return INPUT_NAMES

    def to_dict(self) -> dict[str, Any]:
        """The content of processor_config.json."""
        return self.processor.to_dict()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes the two files of `Processor.save` and a tokenizer_config.json, so that AutoTokenizer works as well.

        The latter names no processor class: with one, programs that serve text alone would load this processor.
        """
        files = self.processor.save(save_directory)
        names = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        tokenizer_config = names | {key: str(token) for key, token in self.tokenizer.special_tokens_map.items()}
        path = Path(save_directory) / "tokenizer_config.json"
        path.write_text(json.dumps(tokenizer_config, indent=2) + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return [str(file) for file in (*files, path)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> TrisenseProcessor:  # type: ignore[override]
        """Reads a folder that `save_pretrained` or `Processor.save` wrote, or a repository of the Hub that holds one.

        Raises BadInput for a folder with a missing file, an unknown key or a wrong value, naming it.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            return cls(Processor.from_folder(folder / (kwargs.get("subfolder") or "")))
        options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        paths = [
            cached_file(str(pretrained_model_name_or_path), name, **options) for name in (TOKENIZER_FILE, CONFIG_FILE)
        ]
        return cls(Processor.from_folder(Path(str(paths[-1])).parent))


def _pretrained_tokenizer(processor: Processor) -> PreTrainedTokenizerFast:
    tokens: TextTokenizer = processor.tokenizer
    end = tokens.token(min(processor.end_ids)) if processor.end_ids else None
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens.copy(),
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
        model_input_names=INPUT_NAMES[:2],
        padding_side="left",
    )


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `batch` out of flat and nested keyword arguments; anything else would be dropped in silence."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        flat |= value if key in ("text_kwargs", "common_kwargs") else {key: value}
    options: dict[str, Any] = {}
    for key, value in flat.items():
        if key == "return_tensors":
            options[key] = None if value is None else str(getattr(value, "value", value))
        elif key == "padding" and value in (True, False, "longest", "do_not_pad"):
            options[key] = value in (True, "longest")
        elif key == "padding_side" and value in ("left", "right"):
            options[key] = value
        elif key in ("images_kwargs", "audio_kwargs") and not value:
            continue
        else:
            raise BadInput(
                f"{key}={value!r}: not an option of TrisenseProcessor; it takes return_tensors, "
                "padding=True|False|'longest' and padding_side='left'|'right'"
            )
    return options


def _sources(media: Any) -> list[Any]:
    if media is None:
        return []
    return list(media) if isinstance(media, list) else [media]


def _per_question(name: str, media: Any, count: int) -> list[Any]:
    if media is None:
        return [None] * count
    if not isinstance(media, list | tuple) or len(media) != count:
        got = len(media) if isinstance(media, list | tuple) else type(media).__name__
        raise BadInput(
            f"{name}: got {got} for {count} questions; give one entry per question: a source, a list or None"
        )
    return list(media)


def _batched(conversation: Any) -> Iterable[Any]:
    if isinstance(conversation, Conversation):
        return [conversation]
    if isinstance(conversation, Sequence) and conversation and isinstance(conversation[0], Conversation | list | tuple):
        return conversation
    return [conversation]


def _part(part: Any, where: str) -> Text | Image | Audio:
    """A part in transformers' style, which may name a local file, or else in OpenAI's."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "audio"):
        return openai_part(part, where)
    source = next((part[key] for key in (kind, "url", "path") if part.get(key) is not None), None)
    if source is None:
        raise BadInput(f"{where}: an {kind} without a source; give it under {kind!r}, 'url' or 'path'")
    return Image(image=source) if kind == "image" else Audio(audio=source)


def _padded(rows: Sequence[np.ndarray], fill: int, side: str) -> np.ndarray:
    """Rows of int64 [t] -> [B, T] with T the longest."""
    out = np.full((len(rows), max(len(row) for row in rows)), fill, dtype=np.int64)
    for line, row in zip(out, rows, strict=True):
        start = len(line) - len(row) if side == "left" else 0
        line[start : start + len(row)] = row
    return out


def _padded_frames(sounds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sounds [M, f] -> float32 [N, M, F] and the mask of real frames, int64 [N, F]."""
    longest = max(sound.shape[1] for sound in sounds)
    features = np.zeros((len(sounds), sounds[0].shape[0], longest), dtype=np.float32)
    mask = np.zeros((len(sounds), longest), dtype=np.int64)
    for i, sound in enumerate(sounds):
        features[i, :, : sound.shape[1]] = sound
        mask[i, : sound.shape[1]] = 1
    return features, mask
