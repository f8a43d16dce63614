"""What is said in the sounds of a training file, written down once, for a model that learns without ears."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trisense.assistant.transcribe import Transcriber, Transcript
from trisense.data.features import refuse
from trisense.engines.recogniser import Segment, open_recogniser
from trisense.errors import BadInput
from trisense.recipe import Speech


def transcripts(
    sounds: Sequence[Any],
    speech: Speech,
    device: str,
    folder: Path,
    unreadable: Callable[[Any, BadInput], None] = refuse,
) -> Mapping[str, Transcript | BadInput]:
    """name -> transcript of every sound, by the Whisper that a recipe names; those in `folder` are not made again.

    sounds: paths, or what else `load_audio` reads and has a name as its str. unreadable: called with each sound that
    cannot be read; unless it raises, the reason is given in place of its transcript. Raises BadInput for a Whisper that
    is not to be had.
    """
    unique = {str(sound): sound for sound in sounds}
    if not unique:
        return {}
    file = folder / "transcripts.jsonl"
    known = _read(file, speech)
    damaged: dict[str, BadInput] = {}
    if missing := [name for name in unique if name not in known]:
        folder.mkdir(parents=True, exist_ok=True)
        transcribe = Transcriber(open_recogniser(speech.pretrained, device), first_seconds=speech.first_seconds)
        # What a kill cut off in the middle of a line is gone from `known`, so the file is begun with what is whole.
        aside = file.with_suffix(".part")
        aside.write_text("".join([_line(speech.model_dump()), *(_line(_entry(*one)) for one in known.items())]))
        os.replace(aside, file)
        with file.open("a", encoding="utf-8") as lines:
            for name in tqdm(missing, desc="transcripts", mininterval=5):
                try:
                    known[name] = transcribe(unique[name])
                except BadInput as error:
                    unreadable(unique[name], error)
                    damaged[name] = error
                    continue
                lines.write(_line(_entry(name, known[name])))
                lines.flush()
    return {**known, **damaged}


def _read(file: Path, speech: Speech) -> dict[str, Transcript]:
    """What a file holds that was written with the same options; nothing of one that was written with others."""
    known: dict[str, Transcript] = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # killed while it was written
            continue
        if number == 0:
            if entry != speech.model_dump():
                return {}
            continue
        path, heard = entry.pop("sound"), tuple(entry.pop("heard"))
        segments = tuple(Segment(**segment) for segment in entry.pop("segments"))
        known[path] = Transcript(**entry, segments=segments, heard=heard)
    return known


def _entry(path: str, transcript: Transcript) -> dict[str, Any]:
    return {"sound": path, **asdict(transcript)}


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
