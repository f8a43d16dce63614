"""W&B and MLflow by a flag, opened only then: modules in their place note what they are told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from toy import Toy, batch_at, evaluate, stage, toy

from trisense.errors import BadInput
from trisense.train.loop import train
from trisense.train.report import Answer


class Noted(list):
    """Calls by name, with what they were given."""

    def taking(self, name: str, result: object = None):
        def call(*given: object, **named: object) -> object:
            self.append((name, given, named))
            return result

        return call

    def named(self, name: str) -> list[tuple]:
        return [(given, named) for called, given, named in self if called == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted, module = Noted(), ModuleType("wandb")
    run = SimpleNamespace(id="abc", log=noted.taking("log"), finish=noted.taking("finish"))
    vars(module).update(init=noted.taking("init", run), Image=lambda picture: picture, Html=lambda text: text)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return noted


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Noted:
    noted, module = Noted(), ModuleType("mlflow")
    names = ("set_experiment", "log_params", "log_metrics", "log_text", "log_image", "end_run")
    run = SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    vars(module).update({name: noted.taking(name) for name in names}, start_run=noted.taking("start_run", run))
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return noted


def run(out: Path, tracker: str | None, batches=batch_at, model: Toy | None = None) -> None:
    answers = [Answer("where?", "<left>", "right", np.zeros((8, 8, 3), np.uint8))]
    train(
        model or toy(),
        batches,
        stage(save_every=2),
        out,
        device="cpu",
        evaluate=evaluate,
        sample=lambda model: answers,
        tracker=tracker,
    )


def broken_at(number: int):
    def read(wanted: int):
        if wanted == number:
            raise OSError("disk gone")
        return batch_at(wanted)

    return read


def test_weights_and_biases_has_the_curve_and_goes_on_with_it(wandb: Noted, tmp_path: Path):
    out = tmp_path / "runs" / "eden" / "align"
    with pytest.raises(OSError, match="disk gone"):
        run(out, "wandb", broken_at(3))
    ((_, first),) = wandb.named("init")
    assert (first["project"], first["name"], first["id"]) == ("trisense", "eden/align", None)
    assert first["config"]["steps"] == 6 and first["dir"] == str(out)
    run(out, "wandb")
    assert wandb.named("init")[1][1]["id"] == "abc" and first["resume"] == "allow"
    steps = {named["step"]: set() for _, named in wandb.named("log")}
    for (values,), named in wandb.named("log"):
        steps[named["step"]] |= set(values)
    assert set(steps) == {2, 4, 6}
    assert {"loss", "loss_cumulative", "lr", "error", "speed/mfu", "samples", "samples/0"} <= steps[4]
    (text,) = {values["samples"] for (values,), _ in wandb.named("log") if "samples" in values}
    assert text == "<pre>\n  where? -> &lt;left> | right</pre>"
    assert len(wandb.named("finish")) == 2


def test_mlflow_has_the_curve_and_goes_on_with_it(mlflow: Noted, tmp_path: Path):
    out = tmp_path / "runs" / "eden" / "align"
    with pytest.raises(OSError, match="disk gone"):
        run(out, "mlflow", broken_at(3))
    assert mlflow.named("start_run") == [((), {"run_name": "eden/align"})]
    run(out, "mlflow")
    assert mlflow.named("start_run")[1] == ((), {"run_id": "abc"})
    assert len(mlflow.named("log_params")) == len(mlflow.named("set_experiment")) == 1
    logged = {name for (values,), _ in mlflow.named("log_metrics") for name in values}
    assert {"loss", "error", "speed/samples_per_second"} <= logged
    assert (("\n  where? -> <left> | right", "samples/step-4.txt"), {}) in mlflow.named("log_text")
    assert mlflow.named("log_image")[-1][1] == {"artifact_file": "samples/0-step-6.png"}
    assert len(mlflow.named("end_run")) == 2


def test_without_the_flag_neither_is_opened(wandb: Noted, mlflow: Noted, tmp_path: Path):
    run(tmp_path, None)
    assert not wandb and not mlflow


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_says_how_to_get_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match=rf"--tracker {name} needs {name}: pip install 'trisense\[{name}\]'"):
        run(tmp_path, name)


def test_one_that_is_not_known_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="--tracker comet: not known; expected wandb or mlflow"):
        run(tmp_path, "comet")


@pytest.mark.slow
def test_the_real_weights_and_biases_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb", reason="the extra is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, "wandb")
    assert list((tmp_path / "wandb").glob("offline-run-*"))
