"""Stages that learn from files of conversations, with pretrained parts: `caption` and `instruct`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import nn
from tqdm import tqdm

from trisense.assistant.transcribe import Transcript
from trisense.data.batches import Batch
from trisense.data.features import Features, frozen_features
from trisense.data.selection import NO_TRANSCRIPTS, Damaged
from trisense.data.sources import Source, is_missing, open_source
from trisense.data.team import Team
from trisense.data.transcripts import transcripts
from trisense.errors import BadInput
from trisense.model.attention import SEGMENTS
from trisense.model.fingerprint import fingerprints
from trisense.model.loss import fuse_activations
from trisense.model.modeling import TrisenseForConditionalGeneration
from trisense.model.pretrained import add_adapter, load_design
from trisense.model.senses import Sense
from trisense.model.trained import has_adapter, put_trained, save_trained, staged
from trisense.prompt import Processor, Prompt
from trisense.recipe import Recipe, Speech
from trisense.stage import FileStage
from trisense.train.checkpoints import CHECKPOINT, same_run
from trisense.train.doctor import admit, some_of
from trisense.train.gauge import misled
from trisense.train.heap import LARGE, map_tensors
from trisense.train.held import held_back_loss, shown_answers
from trisense.train.learner import Learner, learning
from trisense.train.loop import train
from trisense.train.processes import Parallel, Processes, join_processes
from trisense.train.samples import Samples, batches, media_in

TRAINED = "trained"


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
    """Trains one stage of a recipe on conversations; the folder of the trained parts, `out/NAME/trained`.

    data, media: as `open_source` takes them. after: trained parts to begin with; default: those of the recipe's stage
    before, in the same `out`. device: `auto` or `cpu`. skip_bad: how many damaged rows and samples without their media
    may be left out. parallel, tracker: as `train` takes them. doctor: whether `trisense.train.doctor` looks at the
    stage first. The same call goes on where one was stopped. Several processes compute the features together and
    the main one writes the rest, so `out` has to be one folder for all.
    Raises BadInput for a stage that learns from something else, a stage before that was not trained, data without
    samples, with fewer than rounds or with more damaged ones, a folder that began with other data or another design,
    what the doctor finds wrong, and whatever `load_design`, `put_trained` and `train` refuse.
    """
    options = {"media": media, "after": after, "device": device, "parallel": parallel, "seed": seed}
    ready = get_ready(recipe, name, data, out, **options, skip_bad=skip_bad)
    stage = ready.samples.stage
    found = admit(ready) if doctor else ""
    if found and ready.processes.main:
        tqdm.write(found)
    if ready.processes.main:
        same_run(out / name / "run.json", ready.run, compared=())
    train(
        ready.learner,
        ready.batch_at,
        stage,
        out / name,
        device=device,
        parallel=parallel,
        seed=seed,
        evaluate=lambda m: (
            held_back_loss(m, ready.held, stage.batch_size)
            | {key: held_back_loss(m, other, stage.batch_size)["held_loss"] for key, other in ready.misled.items()}
        ),
        sample=lambda m: shown_answers(m, ready),
        tracker=tracker,
        about={
            "recipe": recipe.name,
            "data": f"{data}: {ready.samples.counts()}",
            "seed": str(seed),
            "design": yaml.safe_dump(ready.run["design"], sort_keys=False),
        },
    )
    trained = out / name / TRAINED
    if ready.processes.main:
        save_trained(ready.learner.model, recipe, name, trained)
        tqdm.write("\n".join([ready.samples.counts(), *ready.samples.selection.damaged.rows]))
    ready.processes.wait()
    return trained


@dataclass(frozen=True)
class Ready:
    """A stage before its first step. prompt_of: a sample by its index. held: the samples to evaluate with. misled: the
    same with other media, by the name of their loss. run: what a run of it remembers."""

    learner: Learner
    batch_at: Callable[[int], Batch]
    samples: Samples
    prompt_of: Callable[[int], Prompt]
    held: list[Prompt]
    misled: dict[str, list[Prompt]]
    processor: Processor
    processes: Processes
    run: dict[str, Any]


def get_ready(
    recipe: Recipe,
    name: str,
    data: str | os.PathLike[str],
    out: Path,
    *,
    media: Path | None = None,
    after: Path | None = None,
    device: str = "auto",
    parallel: Parallel = "ddp",
    seed: int = 0,
    skip_bad: int = 0,
    some: int | None = None,
) -> Ready:
    """Everything that `train_stage` trains with, by the same arguments; of `out` nothing changes but what is made of
    the media once. some: look at no more samples than so many. Raises BadInput as `train_stage`."""
    stage = _stage(recipe, name)
    after = after or _before(recipe, name, out)
    source = open_source(data, media, turns=stage.turns, pictures=recipe.design.pictures)
    source.check_media()
    processes = join_processes(device)
    on_gpu = processes.device.type == "cuda" and parallel == "ddp"
    torch.manual_seed(seed)
    design = staged(recipe, name)
    model, processor = load_design(design, processes.device if on_gpu else "cpu")
    model.senses.to(processes.device)
    if after is not None:
        put_trained(model, recipe, after)
    if stage.learns == "instruct" and not has_adapter(model):
        add_adapter(model, design)
    learning(model, stage)
    # Attention in pieces is not compiled, and what is computed again is compiled as a whole or not at all.
    whole = stage.compile and stage.gradient_checkpointing
    if stage.packing and processes.device.type != "cuda" and not whole:
        model.language_model.set_attn_implementation(SEGMENTS)
    if stage.gradient_checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        large = sum(parameter.numel() for parameter in model.language_model.parameters()) >= LARGE
        if processes.device.type == "cpu" and large:
            map_tensors()

    heard = NO_TRANSCRIPTS
    team = Team(processes.rank, processes.world, processes.gather)
    if recipe.audio == "transcript" and (speech := recipe.answering.speech):
        heard = team.told(lambda: _transcripts(source, speech, device, out, Damaged(skip_bad)))
    context = model.config.text_config.max_position_embeddings
    samples = Samples.of(source, stage, processor, seed, context, skip_bad, heard)
    if some:
        samples = some_of(samples, some)
    run = {"data": source.fingerprint, "design": design.model_dump(mode="json")}
    begun = (out / name / CHECKPOINT).exists()
    team.told(lambda: same_run(out / name / "run.json", run, compared=run) if begun else None)
    features = _features(model, processor, samples, recipe, out, team)
    samples.leave_out_damaged()
    if processes.main:
        tqdm.write(samples.counts())

    def prompt_of(index: int) -> Prompt:
        return samples.prompt(index, features)

    held = [prompt_of(index) for index in samples.held]
    other = misled(model, processor, held)
    for sense in model.senses.values():  # has done its work
        sense.encoder = nn.Identity()
    fuse_activations(model)
    learner = Learner(model, stage.label_smoothing, stage.scheduled_sampling)
    batch_at = batches(samples, features, processes.world)
    return Ready(learner, batch_at, samples, prompt_of, held, other, processor, processes, run)


def _transcripts(
    source: Source, speech: Speech, device: str, out: Path, damaged: Damaged
) -> Mapping[str, Transcript | BadInput]:
    """Of all sounds of a source. Raises BadInput, naming the row, for more that cannot be read than allowed."""

    def unreadable(sound: Any, error: BadInput) -> None:
        damaged.add(BadInput(f"{source.showing(sound)}: {error}"))

    sounds = media_in(conversation for _, conversation in source.good())["audio"]
    return transcripts([sound for sound in sounds if not is_missing(sound)], speech, device, out, unreadable)


def _stage(recipe: Recipe, name: str) -> FileStage:
    known = ", ".join(key for key, stage in recipe.stages.items() if isinstance(stage, FileStage)) or "none"
    stage = recipe.stages.get(name)
    if not isinstance(stage, FileStage):
        raise BadInput(f"recipe {recipe.name} has no stage {name!r} that learns from files; it has {known}")
    return stage


def _before(recipe: Recipe, name: str, out: Path) -> Path | None:
    """The trained parts of the stage that the recipe has before this one; None for its first."""
    files = [key for key, stage in recipe.stages.items() if isinstance(stage, FileStage)]
    if not (earlier := files[: files.index(name)]):
        return None
    trained = out / earlier[-1] / TRAINED
    if not trained.is_dir():
        raise BadInput(
            f"{trained}: no such folder; train the stage {earlier[-1]} into {out} first, or name trained parts with "
            "--after"
        )
    return trained


def _features(
    model: TrisenseForConditionalGeneration,
    processor: Processor,
    samples: Samples,
    recipe: Recipe,
    out: Path,
    team: Team,
) -> dict[str, Features]:
    """By sense, what the frozen encoders make of the samples' media."""
    design = recipe.design.model_dump(mode="json")
    weights = fingerprints(recipe.design)
    features: dict[str, Features] = {}
    for name, media in samples.media().items():
        reads = processor.image if name == "image" else processor.audio
        if not media or reads is None:
            continue
        options = design["senses"][name]
        part, processing = ("vision", "pictures") if name == "image" else ("audio", "sounds")
        what = {
            "weights": weights.get(part, design[part]),  # whatever the folder is called that they are in
            "processing": design[processing],
            "sense": {key: value for key, value in options.items() if key != "projector"},
        }
        sense = cast(Sense, model.senses[name])
        features[name] = frozen_features(
            sense, reads, media, out / "features", what, samples.selection.unreadable, team
        )
    return features
