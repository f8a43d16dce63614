"""A torch model of this package, run by transformers: the engine that an export is compared with, and that of a GPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from trisense.engines.protocol import CachingEngine, Engine, Seen
from trisense.errors import BadInput
from trisense.model.checkpoint import is_model_folder, load_model, open_device
from trisense.model.trained import RECIPE_FILE, has_adapter, load_trained, read_recipe
from trisense.prompt import Processor
from trisense.recipe import Answering


class LocalEngine(CachingEngine):
    """An `Engine` over `TrisenseForConditionalGeneration`: a folder of a whole model, or one of trained parts beside
    pretrained ones.

    On a CPU the model runs in float32 whatever the checkpoint's own dtype (bfloat16 is several times slower there), on
    other devices in the checkpoint's own.
    """

    answering: Answering | None = None
    base: Engine | None = None

    def __init__(self, folder: str | os.PathLike[str], device: str | None = None, name: str | None = None) -> None:
        """name: for people; the folder's own where there is none."""
        self.device = open_device(device)
        self.folder = folder = Path(folder)
        loaded: Any
        if (folder / RECIPE_FILE).is_file():
            loaded, processor = load_trained(folder, self.device)
            self.answering = read_recipe(folder)[0].answering
        else:
            processor = Processor.from_folder(folder)
            loaded = load_model(folder, torch.float32 if self.device.type == "cpu" else None)
        self.model = loaded.to(self.device).eval()
        config = self.model.config
        if dict(processor.placeholders) != config.placeholders:
            raise BadInput(
                f"{folder}: config.json has the placeholders {config.placeholders}, processor_config.json has "
                f"{dict(processor.placeholders)}; they do not belong together"
            )
        text: Any = config.text_config
        name = name or folder.resolve().name
        super().__init__(name, str(folder), processor, text.vocab_size, text.max_position_embeddings)
        self._alone = RLock()
        if self.answering and self.answering.passes == 2 and has_adapter(self.model):
            self.base = _Base(self)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within it the language model is the very one that was loaded, and nobody else runs it."""
        with self._alone:
            self.model.language_model.disable_adapters()
            try:
                yield
            finally:
                self.model.language_model.enable_adapters()

    @staticmethod
    def opens(folder: Path) -> bool:
        """Whether a folder says of itself that it holds a model of this package."""
        return (folder / RECIPE_FILE).is_file() or is_model_folder(folder)

    @torch.inference_mode()
    def _run(
        self, ids: Sequence[int], media: Sequence[tuple[Seen, np.ndarray]], cache: Any, keep: int
    ) -> tuple[np.ndarray, DynamicCache]:
        # One layer of cache per attention layer, never a sliding window's: it must be cut at any length.
        cache = cache if cache is not None else DynamicCache()
        arguments = {}
        if pictures := [values for seen, values in media if seen.sense == "image"]:
            arguments["pixel_values"] = torch.from_numpy(np.stack(pictures)).to(self.model.dtype)  # [N, 3, H, W]
        if sounds := [values for seen, values in media if seen.sense == "audio"]:
            frames = max(values.shape[1] for values in sounds)
            padded = np.stack([np.pad(values, ((0, 0), (0, frames - values.shape[1]))) for values in sounds])
            real = np.stack([np.arange(frames) < values.shape[1] for values in sounds])
            arguments["input_features"] = torch.from_numpy(padded).to(self.model.dtype)  # [N, M, F]
            arguments["input_features_mask"] = torch.from_numpy(real)  # [N, F]
        arguments = {name: value.to(self.device) for name, value in arguments.items()}
        try:
            with self._alone:
                out = self.model(
                    input_ids=torch.tensor([list(ids)], device=self.device),  # [1, T]
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=keep,
                    **arguments,
                )
        except ValueError as error:  # counts of places and vectors differ: the message names both
            raise BadInput(f"{self.folder}: {error}; processor_config.json does not belong to this model") from None
        return out.logits[0].float().cpu().numpy(), out.past_key_values

    def _cut(self, cache: DynamicCache, length: int) -> DynamicCache:
        cache = copy.deepcopy(cache)
        if surplus := cache.get_seq_length() - length:
            cache.crop(-surplus)
        return cache


class _Base(CachingEngine):
    """A local engine with its adapter off: same weights, nothing loaded twice."""

    def __init__(self, engine: LocalEngine) -> None:
        text: Any = engine.model.config.text_config
        super().__init__(
            engine.name, str(engine.folder), engine.processor, text.vocab_size, text.max_position_embeddings
        )
        self._engine = engine

    def _run(
        self, ids: Sequence[int], media: Sequence[tuple[Seen, np.ndarray]], cache: Any, keep: int
    ) -> tuple[np.ndarray, DynamicCache]:
        with self._engine.adapter_off():
            return self._engine._run(ids, media, cache, keep)

    def _cut(self, cache: DynamicCache, length: int) -> DynamicCache:
        return self._engine._cut(cache, length)
