"""A torch model of this package, run by transformers: the engine that an export is compared with, and that of a GPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from trisense.engines.protocol import CachingEngine, Seen
from trisense.errors import BadInput
from trisense.model.checkpoint import load_model
from trisense.model.trained import RECIPE_FILE, load_trained
from trisense.prompt import Processor


class LocalEngine(CachingEngine):
    """An `Engine` over `TrisenseForConditionalGeneration`: a folder of a whole model, one of trained parts beside
    pretrained ones, or a Hub id that is downloaded first.

    On a CPU the model runs in float32 whatever the checkpoint's own dtype (bfloat16 is several times slower there), on
    other devices in the checkpoint's own.
    """

    def __init__(self, model: str | os.PathLike[str], device: str | None = None) -> None:
        if device in (None, "auto"):
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            raise BadInput(f"device {device}: {str(error).splitlines()[0]}") from None
        folder, name = Path(model), os.fspath(model)
        if folder.is_dir():
            name = folder.resolve().name
        else:
            folder = download(name)
        self.folder = folder
        loaded: Any
        if (folder / RECIPE_FILE).is_file():
            loaded, processor = load_trained(folder, self.device)
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
        super().__init__(name, str(folder), processor, text.vocab_size, text.max_position_embeddings)

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


def download(name: str) -> Path:
    """The folder of a model of the Hub, downloaded or from the cache. Raises BadInput when neither has it."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"{name}: no such folder, and not to be had from the Hub ({reason}); give the folder of a model"
        ) from None
