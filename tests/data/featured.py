"""Frozen features of the pictures in a folder: `python featured.py PICTURES FEATURES [kill_rank=R kill_at=N skip=N]`

Each process leaves in the folder of features `rank-R.json`: `passes`, how many pictures each pass of its encoder had,
`told`, which it was told cannot be read, and `error`, what has ended it. kill_at: SIGKILL in that pass of rank R.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig

from trisense.data.features import frozen_features
from trisense.data.team import Team
from trisense.errors import BadInput
from trisense.model.configuration import SenseOptions
from trisense.model.senses import Sense
from trisense.preprocess import ImageProcessor
from trisense.train.processes import join_processes

PROCESSOR = ImageProcessor(height=32, width=32, tokens=4)


def tiny_sense() -> Sense:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return Sense("image", SenseOptions(width=16, select="patches"), config, 24).eval()


def main() -> None:
    pictures, folder = map(Path, sys.argv[1:3])
    options = {"kill_rank": 0, "kill_at": 0, "skip": 0} | {
        name: int(value) for name, value in (option.split("=") for option in sys.argv[3:])
    }
    processes = join_processes("cpu")
    sense = tiny_sense()
    encode, passes, told = sense.encode, [], []

    def counted(values: torch.Tensor, mask: Any = None) -> torch.Tensor:
        passes.append(len(values))
        if (options["kill_rank"], options["kill_at"]) == (processes.rank, len(passes)):
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(values, mask)

    def unreadable(picture: str, error: BadInput) -> None:
        told.append(Path(picture).name)
        if len(told) > options["skip"]:
            raise error

    sense.encode = counted
    paths = [str(path) for path in sorted(pictures.iterdir())]
    team, error = Team(processes.rank, processes.world, processes.gather), None
    try:
        frozen_features(sense, PROCESSOR, paths, folder, "a", unreadable, team)
    except BadInput as refused:
        error = str(refused)
    account = {"passes": passes, "told": told, "error": error}
    (folder / f"rank-{processes.rank}.json").write_text(json.dumps(account))


if __name__ == "__main__":
    main()
