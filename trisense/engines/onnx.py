"""An exported model on ONNX Runtime, without torch: the light wing's own engine.

The folder, as `trisense export onnx` writes it:

    tokenizer.json, processor_config.json   what turns a conversation into a prompt
    config.json                             the model's config, for people
    export.json                             the manifest: every part with its size and digest, and the cache's shape
    onnx/embed_tokens.onnx                  input_ids [1, T] -> inputs_embeds [1, T, D]
    onnx/{image,audio}_encoder.onnx         pixel_values [1, 3, H, W] | input_features [1, M, F] -> features [1, S, E]
    onnx/{image,audio}_projector.onnx       features [1, S, E] -> vectors [1, S, D]
    onnx/decoder.onnx                       inputs_embeds [1, T, D], past.* [1, heads, P, head_dim], positions [K]
                                            -> logits [1, K, V], present.* [1, heads, P + T, head_dim]
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

import numpy as np
import onnxruntime
from onnxruntime import OrtValue
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trisense.engines.protocol import CachingEngine, Seen
from trisense.errors import BadInput
from trisense.prompt import Processor

MANIFEST = "export.json"
Positive = Annotated[int, Field(gt=0)]
Cache = list[OrtValue]

# One answer at a time has matrices of one row, over which threads spend their time waiting for each other: a part below
# SMALL bytes (spark's decoder: 0.5 ms a token on one thread, 0.9 on two) gets one, any other at most MAX_THREADS.
SMALL = 16 * 2**20
MAX_THREADS = 8

# Vectors of pictures and sounds kept by the engine, so that a picture asked about again is not encoded again.
KEPT_VECTORS = 16


class Part(BaseModel):
    """One file of an export."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    """Path inside the folder."""
    sha256: str
    bytes: Positive


class Manifest(BaseModel):
    """`export.json`. Keys of the cache: per layer one key and one value [1, kv_heads, P, head_dim]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    weights: str
    parts: dict[str, Part]
    layers: Positive
    kv_heads: Positive
    head_dim: Positive
    hidden_size: Positive
    vocab_size: Positive
    max_positions: Positive

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads and checks `folder/export.json`: every part there with its size, and none that it does not name."""
        path = folder / MANIFEST
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except OSError:
            raise BadInput(f"{path}: no such file; expected a folder written by `trisense export onnx`") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(key) for key in first["loc"]) or "the file"
            raise BadInput(f"{path}: {where}: {first['msg']}; export the model again") from None
        for part in manifest.parts.values():
            file = folder / part.file
            if not file.is_file():
                raise BadInput(f"{file}: missing, but {MANIFEST} names it; export the model again")
            if (size := file.stat().st_size) != part.bytes:
                raise BadInput(f"{file}: {size} bytes, but {MANIFEST} says {part.bytes}; export the model again")
        named = {part.file for part in manifest.parts.values()}
        found = {path.relative_to(folder).as_posix() for path in (folder / "onnx").glob("*")}
        if extra := sorted(found - named):
            raise BadInput(f"{folder / extra[0]}: not a part that {MANIFEST} names ({len(extra)} such); remove it")
        return manifest

    def verify(self, folder: Path) -> None:
        """Reads every part and compares its digest. Raises BadInput for the first that differs."""
        for part in self.parts.values():
            with (folder / part.file).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != part.sha256:
                raise BadInput(f"{folder / part.file}: its content is not what {MANIFEST} says; export the model again")


def past_names(layers: int) -> list[str]:
    """The decoder's cache inputs, in order; `present` in place of `past` gives its outputs."""
    return [f"past.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


class OnnxEngine(CachingEngine):
    """An `Engine` over a folder of ONNX parts. Thread-safe. Parts of a sense are opened when first needed."""

    def __init__(self, folder: str | os.PathLike[str], device: str | None = None) -> None:
        folder = Path(folder)
        if device not in (None, "auto", "cpu"):
            raise BadInput(f"device {device}: {folder} holds ONNX parts, which run on the cpu; expected cpu")
        self.folder = folder
        self.manifest = Manifest.read(folder)
        processor = Processor.from_folder(folder)
        wanted = {"embed_tokens", "decoder"}
        for sense in ("image", "audio"):
            if getattr(processor, sense) is not None:
                wanted |= {f"{sense}_encoder", f"{sense}_projector"}
        # The weights of a part above 2 GB lie in a file of their own beside it.
        parts = {name for name in self.manifest.parts if not name.endswith(".data")}
        for name in sorted(parts ^ wanted):
            has = "names" if name in parts else "lacks"
            raise BadInput(
                f"{folder}: {MANIFEST} {has} the part {name}, against processor_config.json; export it again"
            )
        super().__init__(
            folder.resolve().name, str(folder), processor, self.manifest.vocab_size, self.manifest.max_positions
        )
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._vectors: dict[bytes, np.ndarray] = {}
        self._lock = Lock()
        self._past = past_names(self.manifest.layers)
        self._outputs = ["logits", *(name.replace("past", "present") for name in self._past)]
        self._session("decoder")

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        session = self._sessions.get(name)
        if session is None:
            path = self.folder / self.manifest.parts[name].file
            options = onnxruntime.SessionOptions()
            parts = self.manifest.parts.items()
            size = sum(part.bytes for other, part in parts if other.split(".")[0] == name)  # with its .data
            options.intra_op_num_threads = threads(size)
            options.inter_op_num_threads = 1
            options.log_severity_level = 4
            # Parts run one after another; a pool that spins while another part works takes its core away.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # its exceptions share no base of their own
                reason = str(error).splitlines()[0]
                raise BadInput(f"{path}: not an ONNX model ({reason}); export the model again") from None
            self._sessions[name] = session
        return session

    @cached_property
    def _empty(self) -> OrtValue:
        shape = (1, self.manifest.kv_heads, 0, self.manifest.head_dim)
        return OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))

    def vectors(self, sense: str, values: np.ndarray, digest: bytes) -> np.ndarray:
        """The language model's vectors [S, D] for one `pixel_values` [3, H, W] or `input_features` [M, F]."""
        with self._lock:
            known = self._vectors.pop(digest, None)
        if known is None:
            encoder, projector = self._session(f"{sense}_encoder"), self._session(f"{sense}_projector")
            features = encoder.run(None, {encoder.get_inputs()[0].name: values[None].astype(np.float32, copy=False)})[0]
            known = np.asarray(projector.run(None, {"features": features})[0])[0]  # [S, D]
        with self._lock:
            self._vectors[digest] = known  # the last used is the last
            while len(self._vectors) > KEPT_VECTORS:
                del self._vectors[next(iter(self._vectors))]
        return known

    def _run(
        self, ids: Sequence[int], media: Sequence[tuple[Seen, np.ndarray]], cache: Any, keep: int
    ) -> tuple[np.ndarray, Cache]:
        input_ids = np.asarray(ids, np.int64)[None]  # [1, T]
        embeds = np.asarray(self._session("embed_tokens").run(None, {"input_ids": input_ids})[0])  # [1, T, D]
        if media:
            embeds = embeds.copy()
        for seen, values in media:
            vectors = self.vectors(seen.sense, values, seen.digest)
            if len(vectors) != seen.length:
                raise BadInput(
                    f"{self.folder}: the prompt keeps {seen.length} places for the {seen.sense} but its encoder gives "
                    f"{len(vectors)} vectors; processor_config.json does not belong to this model"
                )
            embeds[0, seen.start : seen.start + seen.length] = vectors
        positions = np.arange(len(ids) - keep, len(ids), dtype=np.int64)
        inputs = {"inputs_embeds": embeds, "positions": positions}
        values = {name: OrtValue.ortvalue_from_numpy(value) for name, value in inputs.items()}
        values |= zip(self._past, cache or [self._empty] * len(self._past), strict=True)
        # The cache stays in the runtime's own memory from step to step.
        logits, *present = self._session("decoder").run_with_ort_values(self._outputs, values)
        return logits.numpy()[0], present

    def _cut(self, cache: Cache, length: int) -> Cache:
        # A run never changes its inputs, so a whole cache can be shared.
        if cache[0].shape()[2] == length:
            return cache
        return [OrtValue.ortvalue_from_numpy(np.ascontiguousarray(part.numpy()[:, :, :length])) for part in cache]


def threads(size: int) -> int:
    """Threads for a part of `size` bytes: the cores this process may use, hardware twins of a core counted once."""
    if size < SMALL:
        return 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else cpu)
    return min(len(cores), MAX_THREADS)
