"""Runs of training whose memory was measured, and how to measure them again: `python -m trisense.measure.recorded`.

Models of 30 to 90 million random weights learn random words about random pictures, each run in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from trisense.measure.sides import SMALL
from trisense.recipe import Recipe, read

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "phi 78 M": {**SMALL, "max_position_embeddings": 2048, **ENDS},
    "phi3 51 M": {
        "model_type": "phi3",
        "vocab_size": 32064,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **ENDS,
    },
    "phi 35 M": {
        "model_type": "phi",
        "vocab_size": 16000,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 13,
        "num_attention_heads": 6,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
        "tie_word_embeddings": False,
        **ENDS,
    },
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 128,
}


@dataclass(frozen=True)
class Run:
    """A stage of a recipe over small parts. model: of MODELS. words: of an answer, from the shortest to the longest.
    about: questions about each picture. options: of the stage."""

    recipe: str
    stage: str
    model: str
    words: tuple[int, int]
    options: Mapping[str, Any]
    samples: int = 48
    about: int = 1
    pictures: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self, parts: Path) -> Recipe:
        """The recipe over the parts in a folder, with this stage alone."""
        always = {"warmup_steps": 1, "precision": "float32", "optimizer": "adamw", "buckets": None, "save_every": 1000}
        design = {
            "text": {"pretrained": str(parts / "text")},
            "vision": {"pretrained": str(parts / "vision")},
            "placeholders": {"image": MODELS[self.model]["vocab_size"] - 1},
            "quantisation": None,
        }
        options = {f"stages.{self.stage}": always | {"evaluate_every": 1000} | dict(self.options)}
        flat = [f"{key}.{name}={json.dumps(value)}" for key, one in options.items() for name, value in one.items()]
        flat += [f"design.{key}={json.dumps(value)}" for key, value in design.items()]
        width = CLIP["projection_dim"] if self.recipe in ("eden", "ft35") else CLIP["hidden_size"]
        recipe = read(self.recipe, [*flat, f"design.senses.image.width={width}"])
        return recipe.model_copy(update={"stages": {self.stage: recipe.stages[self.stage]}})


CAPTION, ANSWER = (9, 15), (12, 120)
_LINEAR = {"batch_size": 16, "steps": 3, "scheduled_sampling": None}
_ALL = {"gradient_checkpointing": False}
_SIZES = {40: 8, 80: 4, 120: 2}
RUNS: dict[str, Run] = {
    # What the constants of the memory model were chosen on.
    "caption, residual": Run("jnana", "align", "phi 78 M", CAPTION, {"batch_size": 4, "steps": 14}),
    "LoRA": Run("context-gpt", "instruct", "phi 78 M", ANSWER, {"batch_size": 4, "steps": 14}),
    "LoRA, checkpointing": Run(
        "context-gpt", "instruct", "phi 78 M", ANSWER, {"batch_size": 8, "steps": 4, "gradient_checkpointing": True}, 36
    ),
    # What they were not.
    "caption, linear, batches of 16": Run("tinyclip-phi2", "align", "phi 35 M", CAPTION, _LINEAR, 36),
    "caption, packed": Run("jnana", "align", "phi3 51 M", CAPTION, {"packing": {"tokens": 768}, "steps": 3}, 60, 5),
    "LoRA, packed": Run("context-gpt", "instruct", "phi 35 M", ANSWER, {"packing": {"tokens": 768}, "steps": 4}, 24, 4),
    "LoRA, norm-mlp": Run("eden", "instruct", "phi3 51 M", ANSWER, {"batch_size": 6, "steps": 4, **_ALL}, 22),
    "LoRA, norm-mlp, checkpointing": Run("eden", "instruct", "phi3 51 M", ANSWER, {"batch_size": 12, "steps": 3}, 36),
    "LoRA, by length": Run("jnana", "instruct", "phi 35 M", ANSWER, {"buckets": _SIZES, "steps": 6}, 24),
    "LoRA, batches of 2": Run("ft35", "instruct", "phi3 51 M", ANSWER, {"batch_size": 2, "steps": 8, **_ALL}, 16),
}


def lay_out(run: Run, folder: Path, weights: bool = True) -> Path:
    """Writes parts and data of a run; the data file. weights: False leaves weights and pictures out, which predicting
    does not read."""
    text = MODELS[run.model]
    for name, config in (("text", text), ("vision", CLIP)):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    words = text["vocab_size"] - len(SPECIAL) - 2
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "?", *(f"w{i}" for i in range(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "text" / "tokenizer.json"))
    rng = np.random.default_rng(0)

    def said(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, words, count))

    records = []
    for number in range(run.samples):
        turns = [
            {"from": "human", "value": f"<image>\n{said(8) if run.stage == 'instruct' else 'Describe it.'}"},
            {"from": "gpt", "value": said(int(rng.integers(*run.words, endpoint=True)))},
        ]
        records.append({"id": str(number), "image": f"{number // run.about}.png", "conversations": turns})
    for number in range(-(-run.samples // run.about)):
        path = folder / f"{number}.png"
        if weights:
            from PIL import Image

            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        else:
            path.touch()
    if weights:
        _write_weights(folder)
    data = folder / "data.json"
    data.write_text(json.dumps(records))
    return data


def _write_weights(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "text")).save_pretrained(folder / "text")
    config = CLIPVisionConfig.from_pretrained(folder / "vision")
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "vision")


def train_here(name: str, folder: str) -> int:
    """Trains a run whose parts are in a folder, in this process; the most bytes that were resident in it."""
    from trisense.measure.bench import resident
    from trisense.train.files import train_stage

    run, parts = RUNS[name], Path(folder)
    train_stage(run.resolved(parts), run.stage, parts / "data.json", parts / "out", device="cpu")
    return resident(peak=True)


def measure(name: str) -> int:
    """The same in a process of its own, on one thread."""
    with TemporaryDirectory(prefix="trisense-plan-") as folder:
        lay_out(RUNS[name], Path(folder))
        code = f"from trisense.measure.recorded import train_here; print(train_here({name!r}, {folder!r}))"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr}")
        return int(done.stdout.split()[-1])


def recorded() -> dict[str, int]:
    """Bytes by the name of a run, as they were measured once."""
    return yaml.safe_load((files("trisense.measure") / "recorded.yaml").read_text(encoding="utf-8"))["bytes"]


def table(measured: dict[str, int]) -> str:
    """Markdown: every run as it is predicted and as it was measured."""
    from trisense.measure.plan import look_at, plan_stage

    rows = ["| run | recipe and stage | model | predicted, MB | measured, MB | ratio |", "|---|---|---|---:|---:|---:|"]
    for name, size in measured.items():
        run = RUNS[name]
        with TemporaryDirectory(prefix="trisense-plan-") as folder:
            recipe = run.resolved(Path(folder))
            data = lay_out(run, Path(folder), weights=False)
            found = look_at(recipe, run.stage, data)
            total = plan_stage(recipe, run.stage, found, device="cpu", speed=1.0).memory.total
        what = f"{run.recipe} {run.stage} | {run.model}"
        rows.append(f"| {name} | {what} | {total / 1e6:,.0f} | {size / 1e6:,.0f} | {total / size:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(RUNS)
    if unknown := [name for name in chosen if name not in RUNS]:
        sys.exit(f"no run is called {unknown[0]!r}; runs: {', '.join(RUNS)}")
    print(table({name: measure(name) for name in chosen}))
