"""The cluster examples: what they would start is a command that torchrun and trisense take."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from test_docs import parse, shell_lines
from torch.distributed.run import get_args_parser

from trisense.recipe import read

CLUSTER = Path(__file__).resolve().parent.parent / "examples" / "cluster"
SLURM, KUBERNETES = CLUSTER / "slurm.sbatch", CLUSTER / "kubernetes.yaml"


def started(words: list[str]) -> tuple[dict[str, object], list[str]]:
    """torchrun's options and trisense's words; flags that either does not have fail."""
    given = get_args_parser().parse_args(words)
    assert given.module and given.training_script == "trisense"
    assert not parse(list(given.training_script_args)), "an argument is missing"
    group, command, *names = given.training_script_args
    assert group == "train" and (command == "spark" or names[1] in read(names[0]).stages)
    return vars(given), given.training_script_args


def test_what_the_readme_starts_with_torchrun_is_taken():
    readme = CLUSTER.parent.parent / "README.md"
    lines = [line for line in shell_lines(readme.read_text(encoding="utf-8")) if line.startswith("torchrun ")]
    assert len(lines) == 2
    for line in lines:
        started(shlex.split(line)[1:])


def rendered(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The SLURM script run by bash, with programs in place of SLURM's that print what they are given."""
    programs = {"srun": 'printf "%q " "$@"', "scontrol": "printf 'node-7\\nnode-8\\n'"}
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n" if name != "srun" else f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "41"}
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", SLURM, *arguments], env={**path, **slurm, **environment}, capture_output=True, text=True, timeout=60
    )


def test_the_slurm_script_starts_one_torchrun_a_machine(tmp_path: Path):
    assert subprocess.run(["bash", "-n", SLURM]).returncode == 0
    data = {"DATA": "a file.json", "MEDIA": "pictures", "OUT": "runs/eden"}
    more = ("stages.instruct.lr=1e-5", "--parallel", "fsdp")
    done = rendered(tmp_path, "eden", "instruct", *more, **data)
    assert done.returncode == 0, done.stderr
    program, *words = shlex.split(done.stdout)
    assert program == "torchrun"
    options, ours = started(words)
    assert (options["nnodes"], options["nproc_per_node"], options["rdzv_endpoint"]) == ("2", "8", "node-7:29500")
    assert options["rdzv_id"] == "41"
    assert ours == [
        *("train", "stage", "eden", "instruct", *more),
        *("--data", "a file.json", "--media", "pictures", "--out", "runs/eden"),
    ]


@pytest.mark.parametrize(
    ("arguments", "environment"), [((), {"DATA": "a", "MEDIA": "b", "OUT": "c"}), (("a", "b"), {})]
)
def test_the_slurm_script_says_what_it_lacks(arguments: tuple[str, ...], environment: dict[str, str], tmp_path: Path):
    done = rendered(tmp_path, *arguments, **environment)
    assert done.returncode != 0
    assert "usage: " in done.stderr or "DATA: the file to learn from" in done.stderr


def test_the_options_of_sbatch_come_before_the_first_command():
    lines = SLURM.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert options and max(options) < first, "sbatch reads no further"


def test_the_kubernetes_job_starts_as_many_pods_as_torchrun_waits_for():
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["torchrun"]
    options, ours = started(container["args"])
    assert spec["completions"] == spec["parallelism"] == int(str(options["nnodes"]))
    assert int(str(options["nproc_per_node"])) == container["resources"]["limits"]["nvidia.com/gpu"]
    host, port = str(options["rdzv_endpoint"]).split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    paths = [word.split("=", 1)[1] for word in ours if word.startswith(("--data=", "--media=", "--out="))]
    assert len(paths) == 3 and all(path.startswith((mounts["data"], mounts["runs"])) for path in paths)
