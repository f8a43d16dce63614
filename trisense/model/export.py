"""A torch model, whole or as trained parts -> a folder of ONNX parts for `engines/onnx.py`, which describes its files.

The parts are the unchanged modules of the model behind thin wrappers that only rename inputs and outputs. How weights
are kept, while everything is computed in float32 (were what is computed rounded too, an answer would depend on how much
of the prompt is read at once):

- `float16`: half the file of `float32`, no more: a CPU has hardly any operator for 16 bits, so they are widened once,
  when a part is opened, and then take the memory and the time of `float32`.
- `int8`: matrices in 8 bits, one scale per output and 32 inputs, the embedding table in 8 bits, one scale per row.
- `int4`: as `int8`, but the language model's matrices, its head aside, in 4 bits.

Of the last two, convolutions are kept as in `float16`; biases and norms stay float32.

Letters: T positions, P positions in the cache, K wanted rows of logits, D width of the language model, V vocabulary,
E width of an encoder, S feature vectors of one medium, M mel bins, F log-mel frames.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn
from torch.export import Dim
from transformers import DynamicCache, PreTrainedModel

from trisense.engines.onnx import MANIFEST, Manifest, Part, past_names
from trisense.errors import BadInput
from trisense.model.folders import whole_folder
from trisense.model.merge import open_whole
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.publish import write_card
from trisense.model.senses import Sense
from trisense.prompt import Processor

Weights = Literal["float32", "float16", "int8", "int4"]

# A protobuf file ends at 2 GiB; weights of larger parts go into a file beside it.
LARGE = 1_500_000_000
# Numbers; a smaller constant is not worth a node that widens it.
SMALL = 1024


class _Part(NamedTuple):
    """What torch's exporter wants to know about one part. `shapes` follows `arguments` and marks what may vary."""

    module: nn.Module
    arguments: tuple[Any, ...]
    shapes: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]


class _Encoder(nn.Module):
    """values [1, 3, H, W] or [1, M, F] -> features [1, S, E]."""

    def __init__(self, sense: Sense):
        super().__init__()
        self.sense = sense

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.sense.encode(values)


class _Embedding(nn.Module):
    """input_ids [1, T] -> inputs_embeds [1, T, D], from a table in 8 bits with one scale per row."""

    table: torch.Tensor
    scale: torch.Tensor

    def __init__(self, table: torch.Tensor):
        super().__init__()
        scale = table.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # [V, 1]
        self.register_buffer("table", torch.round(table / scale).to(torch.int8))  # [V, D]
        self.register_buffer("scale", scale)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.table[input_ids].float() * self.scale[input_ids]


class _Decoder(nn.Module):
    """One run of the language model after a cache.

    inputs_embeds [1, T, D], past keys and values [1, heads, P, head_dim], positions [K] of the wanted logits
    -> logits [1, K, V], then keys and values [1, heads, P + T, head_dim].
    """

    def __init__(self, language_model: nn.Module):
        super().__init__()
        self.language_model = language_model

    def forward(
        self, inputs_embeds: torch.Tensor, past: list[torch.Tensor], positions: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.language_model(
            inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True, logits_to_keep=positions
        )
        return (out.logits, *_tensors(out.past_key_values))


def _tensors(cache: DynamicCache) -> list[torch.Tensor]:
    layers: list[Any] = cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def export_onnx(folder: str | os.PathLike[str], out: str | os.PathLike[str], weights: Weights = "float32") -> Manifest:
    """Writes the model of `folder` as ONNX parts into `out`, whole or not at all, and returns the manifest.

    Trained parts are merged first, in memory (`merge.merged`). The float32 weights are in memory twice while the
    language model is written. An earlier export in `out` is replaced. Raises BadInput for an unknown kind of weights,
    for an `out` that holds something else, and as `open_whole` does.
    """
    folder, out = Path(folder), Path(out)
    if weights not in get_args(Weights):
        raise BadInput(f"weights {weights!r}: unknown; expected one of {', '.join(get_args(Weights))}")
    with whole_folder(out, MANIFEST) as aside:
        model, processor = open_whole(folder)
        manifest = write_parts(model, processor, aside, weights)
        processor.save(aside)
        model.config.save_pretrained(aside)
        write_card(aside, folder, "onnx")
        (aside / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


@torch.no_grad()
def write_parts(
    model: TrisenseForConditionalGeneration, processor: Processor, folder: Path, weights: Weights
) -> Manifest:
    """Writes `folder/onnx/*.onnx` and returns the manifest that describes them. Sets the model to eager attention."""
    for module in model.modules():
        # The decomposition of scaled_dot_product_attention does not export with dynamic shapes everywhere.
        if isinstance(module, PreTrainedModel) and module is not model:
            module.set_attn_implementation("eager")
    longest = _longest(model.language_model)
    decoder = _decoder(model.language_model)
    embeds, past, _ = decoder.arguments
    parts = {"embed_tokens": _embedding(model, weights), "decoder": decoder}
    for name, sense in model.senses.items():
        assert isinstance(sense, Sense)
        parts |= _sense(name, sense, processor)
    (folder / "onnx").mkdir()
    for name, part in parts.items():
        path = folder / "onnx" / f"{name}.onnx"
        _write(part, path, weights)
        if weights.startswith("int") and name != "embed_tokens":
            _quantise(path, 4 if weights == "int4" and name == "decoder" else 8)
    text: Any = model.config.text_config
    return Manifest(
        weights=weights,
        # A part above LARGE is two files: name.onnx and, listed as a part of its own, name.onnx.data.
        parts={
            path.name.removesuffix(".onnx"): _describe(path, folder) for path in sorted((folder / "onnx").iterdir())
        },
        layers=len(past) // 2,
        kv_heads=past[0].shape[1],
        head_dim=past[0].shape[3],
        hidden_size=embeds.shape[2],
        vocab_size=text.vocab_size,
        max_positions=longest,
    )


def _sense(name: str, sense: Sense, processor: Processor) -> dict[str, _Part]:
    """Encoder and projector of one sense, for values of the shape that the processor makes."""
    varies = False
    if name == "image":
        image = processor.image
        assert image is not None
        values = torch.zeros(1, 3, image.height, image.width)
    else:
        audio = processor.audio
        assert audio is not None
        varies = audio.chunk_seconds is None
        frames = int((audio.chunk_seconds or 2.0) * audio.sampling_rate) // audio.hop_length
        values = torch.zeros(1, audio.mel_bins, frames)
    features = sense.encode(values)  # [1, S, E]
    source = "pixel_values" if name == "image" else "input_features"
    frames_vary, vectors_vary = ({2: Dim.DYNAMIC}, {1: Dim.DYNAMIC}) if varies else (None, None)
    return {
        f"{name}_encoder": _Part(_Encoder(sense), (values,), (frames_vary,), [source], ["features"]),
        f"{name}_projector": _Part(sense.projector, (features,), (vectors_vary,), ["features"], ["vectors"]),
    }


def _embedding(model: TrisenseForConditionalGeneration, weights: Weights) -> _Part:
    module = model.get_input_embeddings()
    if weights.startswith("int"):
        assert isinstance(module.weight, torch.Tensor)
        module = _Embedding(module.weight)
    ids = torch.zeros(1, 3, dtype=torch.long)
    return _Part(module, (ids,), ({1: Dim.DYNAMIC},), ["input_ids"], ["inputs_embeds"])


def _longest(language_model: Any) -> int:
    """The positions that an export can have, for which it settles what rotary angles they get.

    A Phi-3.5 (LongRoPE, Ding et al. 2024, arXiv:2402.13753) turns all of a context by other angles as soon as it grows
    beyond what the model first learned on; keys in a cache are turned already. An export keeps to the angles of a short
    context, and so to its length: 4096 of Phi-3.5-mini's 131,072.
    """
    text = language_model.config
    for module in language_model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            module.rope_type = "default"  # as it was made: with the angles of a short context
            return module.config.rope_parameters["original_max_position_embeddings"]
    return text.max_position_embeddings


def _decoder(language_model: Any) -> _Part:
    embeds = language_model.get_input_embeddings()(torch.zeros(1, 3, dtype=torch.long))  # [1, T, D]
    out = language_model(inputs_embeds=embeds, use_cache=True, past_key_values=DynamicCache())
    past = [tensor.repeat(1, 1, 2, 1) for tensor in _tensors(out.past_key_values)]  # P differs from T
    names = past_names(len(past) // 2)
    return _Part(
        _Decoder(language_model),
        (embeds, past, torch.tensor([1, 2])),
        ({1: Dim.DYNAMIC}, [{2: Dim.DYNAMIC}] * len(past), {0: Dim.DYNAMIC}),
        ["inputs_embeds", *names, "positions"],
        ["logits", *(name.replace("past", "present") for name in names)],
    )


def _write(part: _Part, path: Path, weights: Weights) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in part.module.state_dict().values())
    with _quiet():
        program = torch.onnx.export(
            part.module.eval(),
            part.arguments,
            dynamo=True,
            dynamic_shapes=part.shapes,
            input_names=part.inputs,
            output_names=part.outputs,
            verbose=False,
        )
    assert program is not None
    # The exporter notes source lines of the machine it ran on, several times the size of a small model.
    ClearMetadataAndDocStringPass()(program.model)
    if weights != "float32":
        _halve(program.model.graph, convolutions=weights.startswith("int"))
    program.save(path, external_data=size > LARGE)


def _halve(graph: ir.Graph, convolutions: bool) -> None:
    """Large constants, or those of convolutions alone, to float16, each with a node that widens it, which the runtime
    computes once.

    A constant with numbers beyond float16's 65,504 stays as it is.
    """
    first = graph[0]
    for name, value in list(graph.initializers.items()):
        if convolutions and not any(use.node.op_type == "Conv" for use in value.uses()):
            continue
        constant = value.const_value
        if constant is None or constant.dtype != ir.DataType.FLOAT or constant.size < SMALL:
            continue
        if (numbers := constant.numpy()).size and np.abs(numbers).max() > np.finfo(np.float16).max:
            continue
        half = ir.tensor(numbers.astype(np.float16), name=f"{name}.half")
        stored = ir.Value(name=half.name, shape=value.shape, type=ir.TensorType(half.dtype), const_value=half)
        widen = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)})
        widen.outputs[0].name = f"{name}.whole"
        widen.outputs[0].type, widen.outputs[0].shape = value.type, value.shape
        graph.insert_before(first, widen)
        ir.convenience.replace_all_uses_with(value, widen.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(stored)


def _quantise(path: Path, bits: Literal[4, 8]) -> None:
    """Weights of matrix products to integers by blocks of 32 inputs, in place. With 4 bits the last, which is the
    language model's head, gets 8: an error there is an error of every word."""
    large = path.with_suffix(".onnx.data")
    with _quiet(), tempfile.TemporaryDirectory(dir=path.parent) as aside:
        model = onnx.load(path)
        if bits == 4:
            head = [node.name for node in model.graph.node if node.op_type == "MatMul"][-1:]
            model = _rounded(model, 4, head).model
        file = Path(aside) / path.name
        _rounded(model, 8).save_model_to_file(str(file), use_external_data_format=large.exists())
        large.unlink(missing_ok=True)
        for written in Path(aside).iterdir():  # the weights of a large part again lie beside it
            written.replace(path.with_name(written.name))


def _rounded(model: onnx.ModelProto, bits: Literal[4, 8], spared: Sequence[str] = ()) -> Any:
    """onnxruntime's own cover over `model`, with the products not `spared` as `MatMulNBits`."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=32, is_symmetric=True, nodes_to_exclude=list(spared))
    quantizer.process()
    return quantizer.model


def _describe(path: Path, folder: Path) -> Part:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Part(file=path.relative_to(folder).as_posix(), sha256=digest, bytes=path.stat().st_size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress report, its warnings about its own insides, and a line for every node that
    onnxruntime's quantiser, which sets up logging when it is imported, rounds or leaves."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxruntime.quantization")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
