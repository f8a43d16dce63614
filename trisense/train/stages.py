"""Any stage that learns from files, by what it learns: one door for conversations and for plain text."""

from __future__ import annotations

import os
from pathlib import Path

from trisense.errors import BadInput
from trisense.recipe import Recipe
from trisense.stage import FileStage, LanguageStage
from trisense.train import files, language
from trisense.train.processes import Parallel


def train_stage(
    recipe: Recipe,
    name: str,
    data: str | os.PathLike[str],
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    skip_bad: int = 0,
    parallel: Parallel = "ddp",
    tracker: str | None = None,
    doctor: bool = True,
) -> Path:
    """The folder of what it has trained: as `trisense.train.files.train_stage`, or of a stage that learns language
    `trisense.train.language.train_language`, which takes neither media, trained parts nor damaged rows. Raises BadInput
    as they do.
    """
    how = {"device": device, "seed": seed, "parallel": parallel, "tracker": tracker}
    if _is_language(recipe, name, media, after, skip_bad):
        return language.train_language(recipe, name, Path(data), out, **how)
    how |= {"media": media, "after": after, "skip_bad": skip_bad, "doctor": doctor}
    return files.train_stage(recipe, name, data, out, **how)


def get_ready(
    recipe: Recipe,
    name: str,
    data: str | os.PathLike[str],
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    skip_bad: int = 0,
) -> files.Ready | language.Ready:
    """The same before its first step."""
    if _is_language(recipe, name, media, after, skip_bad):
        return language.get_ready(recipe, name, Path(data), out, seed=seed)
    options = {"media": media, "after": after, "device": device, "seed": seed, "skip_bad": skip_bad}
    return files.get_ready(recipe, name, data, out, **options)


def _is_language(recipe: Recipe, name: str, media: Path | None, after: Path | None, skip_bad: int) -> bool:
    stage = recipe.stages.get(name)
    if not isinstance(stage, FileStage | LanguageStage):
        known = ", ".join(key for key, one in recipe.stages.items() if isinstance(one, FileStage | LanguageStage))
        raise BadInput(f"recipe {recipe.name} has no stage {name!r} that learns from files; it has {known or 'none'}")
    if isinstance(stage, FileStage):
        return False
    for option, value in (("--media", media), ("--after", after), ("--skip-bad", skip_bad or None)):
        if value is not None:
            raise BadInput(f"{option}: stage {name} trains a language model from nothing on text alone; leave it out")
    return True
