"""Where the curves of a run go besides its own files: TensorBoard always, W&B or MLflow where the user says so."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from trisense.errors import BadInput
from trisense.train.disk import full_disk, write_text

TrackerName = Literal["wandb", "mlflow"]
TRACKERS: tuple[str, ...] = get_args(TrackerName)
# Under which name the services group the runs of this package.
PROJECT = "trisense"


class Tracker(Protocol):
    """Takes what a report says. pictures: uint8 [H, W, 3] by name."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def samples(self, step: int, text: str, pictures: Mapping[str, np.ndarray]) -> None: ...
    def close(self) -> None: ...


def open_trackers(out: Path, name: str | None, options: Mapping[str, Any], done: int) -> list[Tracker]:
    """TensorBoard's files in `out`, and the tracker called `name` where there is one. done: steps already taken; what
    TensorBoard shows of later ones, which a killed run had written but not saved, is forgotten.

    Raises BadInput for a tracker that is not known or not installed.
    """
    trackers: list[Tracker] = [TensorBoard(out, done)]
    if name is not None:
        if name not in TRACKERS:
            raise BadInput(f"--tracker {name}: not known; expected {' or '.join(TRACKERS)}")
        trackers.append({"wandb": WandB, "mlflow": MLflow}[name](out, options))
    return trackers


class TensorBoard:
    def __init__(self, out: Path, done: int):
        self._out = out
        with full_disk(out / "events.out.tfevents.*"):
            self._writer = SummaryWriter(str(out), purge_step=done + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with full_disk(self._out / "events.out.tfevents.*"):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def samples(self, step: int, text: str, pictures: Mapping[str, np.ndarray]) -> None:
        with full_disk(self._out / "events.out.tfevents.*"):
            self._writer.add_text("samples", text.replace("\n", "  \n"), step)
            for name, picture in pictures.items():
                self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        with full_disk(self._out / "events.out.tfevents.*"):
            self._writer.close()


class WandB:
    """Weights & Biases; the environment says where to (WANDB_MODE=offline keeps everything in `out`)."""

    def __init__(self, out: Path, options: Mapping[str, Any]):
        self._wandb = _module("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name="/".join(out.parts[-2:]),
            dir=str(out),
            config=dict(options),
            id=_id(out, "wandb"),
            resume="allow",
        )
        _keep_id(out, "wandb", self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, text: str, pictures: Mapping[str, np.ndarray]) -> None:
        shown = {name: self._wandb.Image(picture) for name, picture in pictures.items()}
        self._run.log({"samples": self._wandb.Html(f"<pre>{_escaped(text)}</pre>"), **shown}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow; the environment says where to (MLFLOW_TRACKING_URI, default: files in the working directory)."""

    def __init__(self, out: Path, options: Mapping[str, Any]):
        self._mlflow = _module("mlflow")
        before = _id(out, "mlflow")
        if before is None:
            self._mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            run = self._mlflow.start_run(run_name="/".join(out.parts[-2:]))
            self._mlflow.log_params(dict(options))
        else:
            run = self._mlflow.start_run(run_id=before)
        _keep_id(out, "mlflow", run.info.run_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def samples(self, step: int, text: str, pictures: Mapping[str, np.ndarray]) -> None:
        self._mlflow.log_text(text, f"samples/step-{step}.txt")
        for name, picture in pictures.items():
            self._mlflow.log_image(picture, artifact_file=f"{name}-step-{step}.png")

    def close(self) -> None:
        self._mlflow.end_run()


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise BadInput(f"--tracker {name} needs {name}: pip install 'trisense[{name}]'") from None


def _id(out: Path, name: str) -> str | None:
    """The run of a service that a run in `out` began with, so that a resumed one goes on with the same curves."""
    file = out / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))["id"] if file.exists() else None


def _keep_id(out: Path, name: str, run: str) -> None:
    write_text(out / f"{name}.json", json.dumps({"id": run}) + "\n")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
