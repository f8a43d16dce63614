"""Any other model of transformers that writes text about pictures, sounds or text, behind the same `Engine`.

It runs as its authors meant it to: its own processor and chat template make the inputs, and its own `generate` runs it,
so positions, caches and everything else that differs from model to model are transformers' business. Nothing is kept
between turns: what a cache holds, and whether it can be cut, differs as well.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING
from transformers.utils.import_utils import is_torchvision_available

from trisense.engines.protocol import Engine, State, check_length, check_options, choose, log_softmax
from trisense.engines.template import TemplateProcessor, TemplatePrompt
from trisense.errors import BadInput
from trisense.model.checkpoint import first_line, open_device, quiet
from trisense.prompt import Prompt
from trisense.recipe import Answering

# What a folder may say about the class of its processor, in the order in which transformers asks.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
UNLIMITED = 1 << 30
Pick = Callable[[np.ndarray], int]


class ForeignEngine:
    """An `Engine` over the folder of an image-text-to-text, any-to-any or text model of transformers.

    On a CPU the model runs in float32, on other devices in the checkpoint's own dtype. One answer at a time: models
    keep notes on themselves while they write.
    """

    answering: Answering | None = None
    base: Engine | None = None

    def __init__(self, folder: str | os.PathLike[str], device: str | None = None, name: str | None = None) -> None:
        """name: for people; the folder's own where there is none.

        Raises BadInput for a folder of which anything is missing, and for a model that transformers does not know or
        that does not write text.
        """
        self.device = open_device(device)
        self.folder = folder = Path(folder)
        self.name = name or folder.resolve().name
        config = load_config(folder)
        self._processor = TemplateProcessor(load_processor(folder, config), str(folder))
        dtype = torch.float32 if self.device.type == "cpu" else "auto"
        self.model = load_writer(folder, config, dtype).to(self.device).eval()
        text = config.get_text_config(decoder=True)
        self.max_positions = getattr(text, "max_position_embeddings", None) or UNLIMITED
        ends = self.model.generation_config.eos_token_id
        self.end_ids = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
        self._one = Lock()

    @property
    def processor(self) -> TemplateProcessor:
        return self._processor

    @property
    def sees(self) -> bool:
        return self._processor.sees

    @property
    def hears(self) -> bool:
        return self._processor.hears

    def prefill(self, prompt: Prompt, state: State | None = None) -> State:
        """A state for `prompt`, which is read only when an answer is written: `generate` does both."""
        if not isinstance(prompt, TemplatePrompt):
            raise TypeError(f"expected a prompt of this engine's own processor, got {type(prompt).__name__}")
        check_length(len(prompt.ids), self.max_positions)
        return State([int(id) for id in prompt.ids], cache=prompt)

    def stream(
        self,
        state: State,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """As `Engine.stream`. At temperature 0 the tokens are those of the model's own greedy `generate`."""
        check_options(max_new_tokens, temperature, top_p, seed)
        rng = np.random.default_rng(seed)
        pick = (lambda logits: choose(logits, temperature, top_p, rng)) if temperature else None
        return self._stream(state, min(max_new_tokens, self.max_positions - len(state.ids)), pick)

    def _stream(self, state: State, count: int, pick: Pick | None) -> Iterator[int]:
        state.finish = "length"
        if count < 1:
            return
        known = state.ids[len(state.cache.ids) :]
        with closing(self._tokens(state.cache, known, count, pick)) as tokens:
            for token in tokens:
                if token in self.end_ids:
                    state.finish = "stop"
                    return
                state.ids.append(token)
                yield token

    def _tokens(
        self, prompt: TemplatePrompt, known: Sequence[int], count: int, pick: Pick | None
    ) -> Generator[int, None, None]:
        """At most `count` ids after `prompt` and `known`, as they come out of `generate` in a thread of its own."""
        arrived: SimpleQueue[int | Exception | None] = SimpleQueue()
        left = Event()

        def write() -> None:
            try:
                self._generate(
                    prompt,
                    known,
                    len(known) + count,
                    pick,
                    streamer=_Streamer(arrived.put, len(known)),
                    stopping_criteria=StoppingCriteriaList([_Left(left)]),
                )
                arrived.put(None)
            except Exception as error:
                arrived.put(error)

        thread = Thread(target=write, name="trisense-generate", daemon=True)
        thread.start()
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            left.set()
            thread.join()

    def logprobs(self, state: State, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """As `Engine.logprobs`, by writing `ids` token by token: that runs every model as its answers do."""
        ids = [int(id) for id in ids]
        if not ids:
            return np.zeros(0, np.float32)
        if len(state.ids) + len(ids) > self.max_positions:
            raise BadInput(f"prompt and answer take more than the {self.max_positions} positions this model reads")
        known = [*state.ids[len(state.cache.ids) :], *ids]
        out = self._generate(
            state.cache, known, len(known), eos_token_id=None, return_dict_in_generate=True, output_logits=True
        )
        rows = torch.cat(out.logits[-len(ids) :]).float().cpu().numpy()  # [K, V]
        return log_softmax(rows)[np.arange(len(ids)), ids].astype(np.float32)

    def _generate(
        self, prompt: TemplatePrompt, known: Sequence[int], count: int, pick: Pick | None = None, **options: Any
    ) -> Any:
        """The model's own greedy `generate` of `count` tokens, the first of them `known`, the others chosen by `pick`.

        With `pick` it is not greedy any more, yet `generate` need not know: only what was picked is left to choose.
        """
        inputs = {name: self._placed(value) for name, value in prompt.inputs.items()}
        with self._one:
            try:
                return self.model.generate(
                    **inputs,
                    max_new_tokens=count,
                    do_sample=False,
                    num_beams=1,
                    use_cache=True,
                    logits_processor=LogitsProcessorList([_Chosen(known, pick)]),
                    **options,
                )
            except ValueError as error:  # such as counts of places and vectors that differ
                raise BadInput(f"{self.folder}: {first_line(error)}; its files do not belong together") from error

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)


class _Streamer(BaseStreamer):
    """Hands every id that `generate` writes to `give`, but for the prompt and the first `skip`."""

    def __init__(self, give: Callable[[int], None], skip: int) -> None:
        self._give = give
        self._skip = skip + 1  # `generate` begins with the whole prompt

    def put(self, value: torch.Tensor) -> None:
        if self._skip:
            self._skip -= 1
        else:
            self._give(int(value))

    def end(self) -> None:
        pass


class _Left(StoppingCriteria):
    """Ends the writing once nobody waits for it."""

    def __init__(self, left: Event) -> None:
        self._left = left

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)  # pyright: ignore[reportReturnType]


class _Chosen(LogitsProcessor):
    """Leaves one token to choose: the next of `known`, then what `pick` takes from the logits; without it, any."""

    def __init__(self, known: Sequence[int], pick: Pick | None) -> None:
        self._known = iter(known)
        self._pick = pick

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        token = next(self._known, None)
        if token is None:
            if self._pick is None:
                return scores
            token = self._pick(scores[0].float().cpu().numpy())  # [V]
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, token] = 0
        return chosen  # pyright: ignore[reportReturnType]


def load_config(folder: Path) -> Any:
    """The config of the model in a folder that writes answers.

    Raises BadInput for one that is missing or damaged, and for a model that transformers does not know or that does not
    write answers.
    """
    path = folder / "config.json"
    kind = _read(path).get("model_type")
    if not isinstance(kind, str):
        raise BadInput(f"{path}: has no model_type, by which transformers knows a model; give the folder of a model")
    if kind not in CONFIG_MAPPING:
        raise BadInput(
            f"{path}: model_type is {kind!r}, which transformers {transformers.__version__} does not know, and code "
            "out of a folder is never run; choose another model, or a newer transformers"
        )
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # whatever a config of unknown content makes its classes raise
            raise BadInput(f"{path}: not a config of {kind} ({first_line(error)})") from None
    # Models that also speak hold one that thinks, which reads everything and writes; the rest only turns text to sound.
    config = getattr(config, "thinker_config", config)
    if _auto_class(config) is None:
        raise BadInput(
            f"{path}: {kind} is not a model that writes answers; expected an image-text-to-text, any-to-any or "
            "text-generation model"
        )
    return config


def _auto_class(config: Any) -> Any:
    if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


def load_writer(folder: Path, config: Any, dtype: torch.dtype | str) -> Any:
    """The model of a folder, on the CPU, every weight of it found; `config` as `load_config` gives it.

    Raises BadInput for weights that are missing, of another shape or not to be read.
    """
    with quiet():
        try:
            model, info = _auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported below, with the others
                output_loading_info=True,
            )
        except (SafetensorError, OSError, ValueError, ImportError) as error:
            raise BadInput(f"{folder}: its weights cannot be read ({first_line(error)})") from None
    # Weights that are too many do no harm: checkpoints keep heads of their training.
    for key, what in (("missing_keys", "lack"), ("mismatched_keys", "have the wrong shape for")):
        if names := sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in info[key]):
            raise BadInput(f"{folder}: the weights {what} {names[0]} ({len(names)} such); config.json asks otherwise")
    return model


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a folder, or the tokenizer of a model that only reads. Raises BadInput when it has none."""
    with quiet():
        try:
            kind = None if is_torchvision_available() else _processor_class(folder, config)
            if kind is not None and "video_processor" in kind.get_attributes():
                return _without_video(kind, folder)
            return AutoProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # missing files and missing packages, each library in its own way
            raise BadInput(
                f"{folder}: its processor cannot be opened ({first_line(error)}); the folder needs all that the "
                "model's authors publish beside the weights"
            ) from None


def _processor_class(folder: Path, config: Any) -> Any:
    """The class that AutoProcessor would choose for a folder; None for one without."""
    for name in PROCESSOR_FILES:
        if (folder / name).is_file() and (found := _read(folder / name).get("processor_class")):
            return getattr(transformers, found, None)
    return PROCESSOR_MAPPING.get(type(config), None)


class NoVideo(dict[str, Any]):
    """In the place of a processor's video processor, which needs torchvision: nobody shows videos here.

    Empty, as which a processor then describes it in json.
    """

    model_input_names: Sequence[str] = ()
    num_frames = fps = None


def _without_video(kind: Any, folder: Path) -> Any:
    """A processor of the class `kind`, as its own `from_pretrained` makes it but for what reads videos."""

    class WithoutVideo(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, NoVideo):
                return NoVideo
            return super().check_argument_for_proper_class(argument_name, argument)

    loaders = {
        "tokenizer": AutoTokenizer,
        "image_processor": AutoImageProcessor,
        "feature_extractor": AutoFeatureExtractor,
    }
    options = {"trust_remote_code": False, "local_files_only": True}
    parts = [
        NoVideo() if name == "video_processor" else loaders[name].from_pretrained(folder, **options)
        for name in kind.get_attributes()
    ]
    values, _ = kind.get_processor_dict(folder, local_files_only=True)
    return WithoutVideo.from_args_and_dict(parts, values)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError:
        raise BadInput(f"{path}: no such file; expected the folder of a model") from None
    except ValueError as error:
        raise BadInput(f"{path}: not json ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: holds no object; expected the keys of a config")
    return values
