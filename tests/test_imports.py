"""The two wings: imports run downward, and answering never pays for training. Read from the source with `ast`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trisense"

# From the ground floor up; a room imports only itself and what stands before it.
ROOMS = [
    "errors",
    "media",
    "preprocess",
    "tokens",
    "chat",
    "prompt",
    "recipes",
    "stage",
    "recipe",
    "data.world",
    "engines",
    "assistant",
    "serve",
    "model",
    "data",
    "train",
    "measure",
    "cli",
]
LIGHT = ROOMS[: ROOMS.index("model")]
HEAVY_LIBRARIES = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "onnx", "onnxscript"}
# The one way up: these load the heavy wing, and only when a model asks for it.
DOORS = {"trisense.engines.local", "trisense.engines.foreign", "trisense.engines.whisper"}


class Import(NamedTuple):
    """`module` is imported by `by`; `lazy` when that happens inside a function or for type checkers only."""

    by: str
    module: str
    lazy: bool


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str) -> Iterator[Import]:
    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; write the whole name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(name, inner if inner in MODULES else str(node.module), lazy)
        lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lazy |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    yield from visit(ast.parse(MODULES[name].read_text(encoding="utf-8")), lazy=False)


def room_of(module: str) -> str | None:
    """The room a module of the package belongs to; None for the bare package, which holds its version."""
    inside = module.removeprefix("trisense").lstrip(".")
    if inside in ("", "__main__"):
        return None
    rooms = [room for room in ROOMS if inside == room or inside.startswith(room + ".")]
    assert rooms, f"{module} stands in no room; add it to ROOMS"
    return max(rooms, key=len)


IMPORTS = [found for name in MODULES for found in imports_of(name)]
OURS = [found for found in IMPORTS if found.module.split(".")[0] == "trisense"]
LIGHT_IMPORTS = [found for found in IMPORTS if room_of(found.by) in LIGHT and found.by not in DOORS]


def test_the_reader_of_imports_sees_them():
    """Everything below would pass on an empty list."""
    assert Import("trisense.cli", "click", lazy=False) in IMPORTS
    assert Import("trisense.cli.answering", "trisense.chat", lazy=True) in IMPORTS
    assert Import("trisense.data.world.draw", "trisense.data.world.facts", lazy=False) in IMPORTS
    assert len(OURS) > 20


def test_imports_run_downward():
    upward = []
    for found in OURS:
        by, module = room_of(found.by), room_of(found.module)
        if by is None or module is None or found.by in DOORS:
            continue
        if ROOMS.index(module) > ROOMS.index(by):
            upward.append(found)
    assert not upward


def test_the_light_wing_imports_nothing_heavy():
    heavy_rooms = ROOMS[len(LIGHT) :]
    heavy = [
        found
        for found in LIGHT_IMPORTS
        if found.module.split(".")[0] in HEAVY_LIBRARIES
        or (found.module.startswith("trisense.") and room_of(found.module) in heavy_rooms)
    ]
    assert not heavy


def test_the_doors_between_the_wings_open_lazily():
    early = [found for found in OURS if found.module in DOORS and found.by not in DOORS and not found.lazy]
    assert not early


def test_the_command_line_starts_with_click_alone():
    early = {found.module for found in IMPORTS if room_of(found.by) == "cli" and not found.lazy}
    outside = {name for name in early if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in outside if not name.startswith("trisense.cli")} == {"click", "trisense", "trisense.errors"}


def test_the_core_installs_what_the_light_wing_imports():
    """`serve` may also use its own extra and starlette, which fastapi is a thin layer of; nothing else a light module
    imports when it loads is an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {requirement.split(">")[0].split("[")[0].strip().lower() for requirement in requirements}

    core, serve = names(project["dependencies"]), names(project["optional-dependencies"]["serve"])
    distributions = packages_distributions()
    missing = []
    for found in LIGHT_IMPORTS:
        top = found.module.split(".")[0]
        if found.lazy or top == "trisense" or top in sys.stdlib_module_names:
            continue
        allowed = core | serve | {"starlette"} if room_of(found.by) == "serve" else core
        if not {name.lower() for name in distributions.get(top, [top])} & allowed:
            missing.append(found)
    assert not missing


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules loaded in a fresh interpreter that ran `code`, whose last line binds nothing."""
    script = (
        f"import sys\n{code}\nimport json\nprint()\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["train", "spark", "--help"], ["--version"]])
def test_help_loads_no_library(arguments: list[str]):
    loaded = loaded_by("from trisense.cli import main\nassert main(sys.argv[1:]) == 0", *arguments)
    assert "click" in loaded
    assert not loaded & (HEAVY_LIBRARIES | {"numpy", "onnxruntime", "pydantic", "PIL", "av", "tokenizers"})


def test_ask_with_spark_loads_neither_torch_nor_transformers(samples: Path):
    loaded = loaded_by(
        "from trisense.cli import main\nassert main(sys.argv[1:]) == 0",
        "ask",
        *("--image", str(samples / "picture.png")),
        *("--audio", str(samples / "voice.wav")),
        *("--text-file", str(samples / "note.txt")),
        "What is in the picture?",
    )
    assert {"onnxruntime", "tokenizers", "PIL", "av"} <= loaded
    assert not loaded & HEAVY_LIBRARIES


def test_hearing_speech_loads_neither_torch_nor_transformers():
    loaded = loaded_by(
        "import numpy\nfrom trisense.engines.recogniser import open_recogniser, voice_activity\n"
        "assert voice_activity(numpy.zeros(16000, numpy.float32)) == []\n"
        "open_recogniser(sys.argv[1]).recognise(numpy.ones(16000, numpy.float32), 'en')",
        str(tiny_models.converted_whisper()),
    )
    assert {"onnxruntime", "ctranslate2"} <= loaded
    assert not loaded & HEAVY_LIBRARIES


def test_every_module_of_the_light_wing_imports_without_the_heavy_libraries():
    light = [name for name in MODULES if room_of(name) in LIGHT and room_of(name) != "serve" and name not in DOORS]
    assert "trisense.media" in light
    assert (
        not loaded_by("import importlib\nfor m in sys.argv[1:]: importlib.import_module(m)", *light) & HEAVY_LIBRARIES
    )
