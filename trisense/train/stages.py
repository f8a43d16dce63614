"""Any stage that learns from files, by what it learns: one door for conversations and for plain text."""

from __future__ import annotations

from pathlib import Path

from trisense.errors import BadInput
from trisense.recipe import FileStage, LanguageStage, Recipe
from trisense.train import files, language
from trisense.train.processes import Parallel


def train_stage(
    recipe: Recipe,
    name: str,
    data: Path,
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    parallel: Parallel = "ddp",
    tracker: str | None = None,
) -> Path:
    """The folder of what it has trained: as `trisense.train.files.train_stage`, or of a stage that learns language
    `trisense.train.language.train_language`, which takes neither media nor trained parts. Raises BadInput as they do.
    """
    if _is_language(recipe, name, media, after):
        return language.train_language(
            recipe, name, data, out, device=device, seed=seed, parallel=parallel, tracker=tracker
        )
    return files.train_stage(
        recipe,
        name,
        data,
        out,
        media=media,
        after=after,
        device=device,
        seed=seed,
        parallel=parallel,
        tracker=tracker,
    )


def get_ready(
    recipe: Recipe,
    name: str,
    data: Path,
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> files.Ready | language.Ready:
    """The same before its first step."""
    if _is_language(recipe, name, media, after):
        return language.get_ready(recipe, name, data, out, seed=seed)
    return files.get_ready(recipe, name, data, out, media=media, after=after, device=device, seed=seed)


def _is_language(recipe: Recipe, name: str, media: Path | None, after: Path | None) -> bool:
    stage = recipe.stages.get(name)
    if not isinstance(stage, FileStage | LanguageStage):
        known = ", ".join(key for key, one in recipe.stages.items() if isinstance(one, FileStage | LanguageStage))
        raise BadInput(f"recipe {recipe.name} has no stage {name!r} that learns from files; it has {known or 'none'}")
    if isinstance(stage, FileStage):
        return False
    for option, value in (("--media", media), ("--after", after)):
        if value is not None:
            raise BadInput(f"{option}: stage {name} trains a language model from nothing on text alone; leave it out")
    return True
