"""What others trained with one of the five designs -> a folder of trained parts of this package.

The five projects published projectors as plain state dicts, each with names of its own, and adapters as peft writes
them. A projector is known here by the shapes of its layers and their order, never by their names:

    nn.Linear                                             `context-gpt` (proj), `tinyclip-phi2` (projection)
    nn.Linear, then LayerNorm, Linear, Linear             `jnana`, in one file or two
    LayerNorm, Linear, Linear                             `ft35`, `eden`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trisense.errors import BadInput
from trisense.model.checkpoint import first_line
from trisense.model.folders import whole_folder
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.parts import design_config, linear_layers
from trisense.model.senses import Sense
from trisense.model.trained import plain_name, write_trained
from trisense.recipe import Adapter, Recipe
from trisense.stage import FileStage

# Settings of peft by which matrices mean something else than `design.adapter` says; they are empty in the published.
OTHERWISE = (
    "alpha_pattern",
    "fan_in_fan_out",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "trainable_token_indices",
    "use_dora",
    "use_qalora",
    "use_rslora",
)


class Layer(NamedTuple):
    """A linear layer (weight [out, in], bias [out]) or a layer norm (both [width]) of a state dict."""

    name: str
    tensors: dict[str, torch.Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in self.tensors.items()}

    def __str__(self) -> str:
        return f"layer {self.name!r} {' '.join(f'{key} {list(shape)}' for key, shape in self.shapes.items())}"


def import_parts(
    projector: Sequence[Path], recipe: Recipe, out: Path, adapter: Path | None = None, stage: str | None = None
) -> None:
    """Writes trained parts of `recipe` to `out`, whole or not at all, which `load_trained` and `merge` open.

    projector: files of one projector's state dict, .safetensors or what `torch.save` wrote; adapter: a folder as peft
    writes it. stage: whose layout they were trained with; default: the recipe's last with an adapter, else its first.
    No weight of a pretrained part is loaded.

    Raises BadInput for a stage that the recipe lacks, a file that holds no tensors, layers of other shapes than the
    design's, an adapter that differs from `design.adapter`, and an `out` that holds something.
    """
    stage = _stage(recipe, stage, adapter is not None)
    design = recipe.design
    numbers = {sense: token for sense, token in design.placeholders.items() if type(token) is int}
    with torch.device("meta"):
        model = TrisenseForConditionalGeneration(design_config(design, numbers))
    sense = model.senses["image"]
    assert isinstance(sense, Sense)
    given = [layer for file in projector for layer in layers_of(read_tensors(file))]
    files = ", ".join(str(file) for file in projector)
    weights = _matched(given, layers_of(sense.projector.state_dict()), files, sense.options.projector)
    matrices: dict[str, torch.Tensor] = {}
    if adapter is not None:
        if design.adapter is None:
            raise BadInput(f"{adapter}: an adapter, but the recipe {recipe.name} has none; give one as design.adapter")
        _check_adapter(adapter, design.adapter)
        matrices = _matrices(adapter, design.adapter, model.language_model)
    with whole_folder(out) as aside:
        write_trained(aside, recipe, stage, {"image": weights})
        if adapter is not None:
            (aside / "adapter").mkdir()
            config = (adapter / "adapter_config.json").read_text(encoding="utf-8")
            (aside / "adapter" / "adapter_config.json").write_text(config, encoding="utf-8")
            named = {f"base_model.model.{name}": value for name, value in matrices.items()}
            save_file(named, aside / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})


def _stage(recipe: Recipe, name: str | None, adapter: bool) -> str:
    stages = [key for key, stage in recipe.stages.items() if isinstance(stage, FileStage)]
    if name is None and stages:
        return stages[-1 if adapter else 0]
    if name not in stages:
        raise BadInput(
            f"recipe {recipe.name} has no stage {name!r} of trained parts; it has {', '.join(stages) or 'none'}"
        )
    return name


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file in its order, those of .safetensors by name; never anything that runs code.

    A file with one state dict among other things (a checkpoint with its optimiser) gives that one. Raises BadInput.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(sorted(load_file(path).items(), key=lambda item: _natural(item[0])))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)[:100]
        raise BadInput(
            f"{path}: cannot be read as tensors ({reason}); expected .safetensors, or a state dict torch.save wrote"
        ) from None
    if _is_state_dict(content):
        return dict(content)
    inner = [one for one in content.values() if _is_state_dict(one)] if isinstance(content, Mapping) else []
    if len(inner) != 1:
        raise BadInput(f"{path}: holds {len(inner) or 'no'} state dicts; expected one, of the projector alone")
    return dict(inner[0])


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, torch.Tensor) for v in content.values())


def _natural(name: str) -> list[Any]:
    """Sorts `2` before `10`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def layers_of(tensors: Mapping[str, torch.Tensor]) -> list[Layer]:
    """Tensors by the module they belong to, in order."""
    layers: dict[str, Layer] = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        layers.setdefault(module, Layer(module, {})).tensors[leaf] = value
    return list(layers.values())


def _matched(given: Iterable[Layer], wanted: Sequence[Layer], files: str, kind: str) -> dict[str, torch.Tensor]:
    """The given tensors under the wanted names: each wanted layer takes the first left of its very shapes."""
    left = list(given)
    weights: dict[str, torch.Tensor] = {}
    for layer in wanted:
        found = next((one for one in left if one.shapes == layer.shapes), None)
        if found is None:
            others = ", ".join(map(str, left)) or "none"
            raise BadInput(f"{files}: no {layer} for the {kind} projector of this design; left are {others}")
        left.remove(found)
        weights |= {f"{layer.name}.{key}": value.float() for key, value in found.tensors.items()}
    if left:
        raise BadInput(f"{files}: the {kind} projector of this design has no place for {left[0]}")
    return weights


def _check_adapter(folder: Path, wanted: Adapter) -> None:
    """Refuses an adapter whose settings are not the design's, by the first that differs."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, targets = config["peft_type"], config["target_modules"]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); expected an adapter as peft writes it") from None
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"{path}: not the settings of an adapter of peft") from None
    targets = sorted(targets) if isinstance(targets, list) else targets
    for key, theirs, ours in (
        ("peft_type", kind, "LORA"),
        ("r", config.get("r"), wanted.r),
        ("lora_alpha", config.get("lora_alpha"), wanted.alpha),
        ("target_modules", targets, sorted(wanted.targets)),
        ("bias", config.get("bias", "none"), "none"),
    ):
        if theirs != ours:
            raise BadInput(f"{path}: {key} is {theirs}, but design.adapter says {ours}; set the recipe's to the same")
    for key in OTHERWISE:
        if config.get(key):
            raise BadInput(f"{path}: {key} is {config[key]}, which this package does not do")


def _matrices(folder: Path, adapter: Adapter, language_model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's matrices under plain names, as many and of such shapes as the design's layers ask for."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file() and (folder / "adapter_model.bin").is_file():  # as peft wrote it before 2024
        path = folder / "adapter_model.bin"
    given = {plain_name(name): value.float() for name, value in read_tensors(path).items()}
    chosen = set(linear_layers(language_model, adapter.targets))
    shapes: dict[str, tuple[int, int]] = {}
    for name, layer in language_model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer in chosen:
            shapes[f"{name}.lora_A.weight"] = (adapter.r, layer.in_features)
            shapes[f"{name}.lora_B.weight"] = (layer.out_features, adapter.r)
    for name in sorted(shapes.keys() ^ given.keys()):
        what = "lacks" if name in shapes else "has, beside no layer of this design's language model,"
        raise BadInput(f"{path}: {what} {name}")
    for name, shape in shapes.items():
        if tuple(given[name].shape) != shape:
            raise BadInput(f"{path}: {name} is {list(given[name].shape)}; this design's is {list(shape)}")
    return {name: value.contiguous() for name, value in given.items()}
