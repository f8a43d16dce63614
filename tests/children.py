"""Runs as processes of their own, one or several that know of each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny_models
from PIL import Image

HERE = Path(__file__).parent
TOY, COUNTED, FEATURED = HERE / "train" / "toy.py", HERE / "train" / "counted.py", HERE / "data" / "featured.py"
# One thread: on a CPU sums then have one order.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def process(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def finished(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = process(*command)
    assert done.returncode == 0, done.stderr
    return done


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def train_eden(out: Path, *more: str, launcher: tuple[str, ...] = ()) -> list[str]:
    """`trisense train stage` on tiny parts, with dropout in its adapter, logging every step and saving every third."""
    folder = out.parent
    names = [f"{index}.png" for index in range(30)]
    if not (folder / "data.json").exists():
        tiny_models.pretrained(folder / "parts")
        for index, name in enumerate(names):
            Image.new("RGB", (40, 36), (8 * index, 40, 90)).save(folder / name)
        turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "It is so."}]
        records = [{"id": name, "image": name, "conversations": turns} for name in names]
        (folder / "data.json").write_text(json.dumps(records))
    short = {"steps": 60, "batch_size": 4, "warmup_steps": 2, "precision": "float32", "optimizer": "adamw"}
    often = {"log_every": 1, "evaluate_every": 25, "save_every": 3}
    options = [f"stages.instruct.{key}={value}" for key, value in {**short, **often}.items()]
    options += tiny_models.pretrained_overrides("eden", folder / "parts")
    where = ["--data", str(folder / "data.json"), "--out", str(out), "--device", "cpu"]
    return [sys.executable, *launcher, "-m", "trisense", "train", "stage", "eden", "instruct", *options, *more, *where]
