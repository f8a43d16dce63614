"""`run.md`: what a run was, on one page: from what, with what, on what, how long, and what came of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from trisense import __version__
from trisense.stage import Stage
from trisense.train.disk import write_text
from trisense.train.processes import Processes

CARD = "run.md"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")
# Lines of the curve that the card shows.
POINTS = 12


def write_card(
    out: Path,
    stage: Stage,
    processes: Processes,
    where: str,
    about: Mapping[str, str],
    rows: Sequence[Mapping[str, float]],
    counted: Mapping[str, Any],
) -> None:
    """Writes `out/run.md`. where: the processes in words. about: name -> what the caller knows; a value of several
    lines gets a section of its own. rows: the lines of the log. counted: samples, tokens and seconds of all steps."""
    facts = {
        **{name: value for name, value in about.items() if "\n" not in value},
        "samples": f"{counted['samples']:,} in {stage.steps:,} steps"
        + (f", {counted['tokens']:,} tokens" if counted["tokens"] else ""),
        "time": f"{_duration(counted['seconds'])} of steps, evaluating and saving aside",
        "cost": _cost(counted, processes),
        "processes": where,
        "hardware": hardware(processes.device),
        "versions": ", ".join([f"trisense {__version__}", f"Python {platform.python_version()}", *_versions()]),
        "commit": commit() or "none: the code is in no git repository",
    }
    last = {name: value for row in rows for name, value in row.items() if name != "step"}
    lines = [
        f"# {out.parent.name}/{out.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value.replace('|', ',')} |" for name, value in facts.items()),
        "",
        "## At the end",
        "",
        *(f"- {name}: {value:.6g}" for name, value in last.items()),
        "",
        "## Curve",
        "",
        "![loss](loss.png)",
        "",
        "`loss` is the mean over the steps since the line before, `cumulative` the mean over all steps so far.",
        "",
        "| step | loss | cumulative | gradient norm | learning rate |",
        "|---:|---:|---:|---:|---:|",
        *(_row(row) for row in _spaced([row for row in rows if "loss" in row])),
        "",
        *_answers(out / "samples.json"),
        *(line for name, value in about.items() if "\n" in value for line in _section(name, value)),
        *_section("stage", yaml.safe_dump(stage.model_dump(mode="json"), sort_keys=False)),
    ]
    write_text(out / CARD, "\n".join(lines).rstrip() + "\n")


def hardware(device: torch.device) -> str:
    """The device, and this machine's processor, cores and memory."""
    cores = f"{os.cpu_count()} cores of {_processor()}, {psutil.virtual_memory().total / 1e9:.0f} GB"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {cores}"
    return cores if device.type == "cpu" else f"{device.type}, {cores}"


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit of the repository that the files in `folder` belong to, and whether they differ from it."""
    try:
        known = _git(folder, "ls-files", ".")
        if not known:
            return None
        changed = " with changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else ""
        return _git(folder, "rev-parse", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _cost(counted: Mapping[str, Any], processes: Processes) -> str:
    kind = "GPU" if processes.device.type == "cuda" else "process"
    busy = counted["seconds"] * processes.world
    return f"{1000 * busy / max(1, counted['samples']):.3g} {kind}-seconds per 1,000 samples"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _spaced(rows: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """At most POINTS of them, the first and the last among them."""
    if len(rows) <= POINTS:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _row(row: Mapping[str, float]) -> str:
    return (
        f"| {row['step']} | {row['loss']:.4f} | {row['loss_cumulative']:.4f} | {row['grad_norm']:.3g} "
        f"| {row['lr']:.3g} |"
    )


def _answers(file: Path) -> list[str]:
    if not file.exists():
        return []
    shown = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        "| " + " | ".join(" ".join(a[key].replace("|", ",").split()) for key in ("question", "said", "truth")) + " |"
        for a in shown["answers"]
    ]
    head = [f"Greedy answers to held-back questions after step {shown['step']}.", "", "| question | said | truth |"]
    return ["## Samples", "", *head, "|---|---|---|", *rows, ""]


def _section(name: str, text: str) -> list[str]:
    return [f"## {name.capitalize()}", "", "```yaml", *text.rstrip().splitlines(), "```", ""]
