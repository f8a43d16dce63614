"""Real pictures by name, real speech and spoken sentences by their words, as arrays on disk: encoders warm up on it."""

from __future__ import annotations

import io
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from trisense.data.real.pack import Pack, Ref, Row, Split
from trisense.data.world.bank import make_shards, write_aside
from trisense.data.world.facts import Utterance
from trisense.data.world.speech import speak
from trisense.errors import BadInput
from trisense.media import load_audio
from trisense.preprocess import AudioProcessor

# Letters: P pictures, S side of a picture in pixels, N sounds, F frames of all sounds one after the other, M mel bins.

SHARD = 1000
NAMED = ("pictures/noto72", "pictures/art4apps", "pictures/tuxpaint", "pictures/grocery", "pictures/easy_vqa_images")
PHOTOGRAPHS = "pictures/grocery"
RECORDED = (
    "speech/speechocean762_train_1",
    "speech/speechocean762_train_2",
    "speech/fsdd",
    "speech/gcompris_en",
    "speech/speech_commands",
    "speech/wake_words",
    "sounds/esc10_baby_dog",
    "sounds/instruments",
)
# Longer captions describe, they do not name; longer sounds are few, and a batch is as long as its longest.
NAME_WORDS = 5
LONGEST = 1200  # frames


class RealBank:
    """Pictures uint8 [P, S, S, 3] with the `names` they have, and `mels` float16 [F, M] with the `words` in them.

    The sound of number i is `mels[offsets[i] : offsets[i + 1]]`; those below `recorded` are real, the others are
    sentences of the pack's texts, spoken by the small world's synthesiser. What is no speech has its name in brackets
    as words: `(dog barking)`. files: where each picture and each sound comes from, "" for what is spoken here.
    """

    def __init__(
        self, folder: Path, pack: Pack, split: Split, size: int, sounds: AudioProcessor, sentences: int, seed: int
    ):
        """Opens the bank in `folder`, reading and speaking what is missing, in as many processes as there are cores.

        Raises BadInput when the folder holds a bank made otherwise, and as `Pack.rows`.
        """
        made = {"split": split, "size": size, "sounds": sounds.model_dump(), "sentences": sentences, "seed": seed}
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "bank.json"
        if not card.exists():
            write_aside(card, lambda aside: aside.write_text(json.dumps(made)))
        elif json.loads(card.read_text()) != made:
            raise BadInput(f"{card}: this bank was made with other options; name another folder or remove it")
        pictures = list(named_pictures(pack, split))
        heard: list[tuple[Ref | Utterance, str]] = [*recorded(pack, split)]
        self.recorded = len(heard)
        heard += ((one, one.words) for one in spoken(pack, split, sentences, seed))
        cuts = [
            (_picture_shard, folder / f"pictures-{start}.npy", (pack.folder, [ref for ref, _ in part], size))
            for start, part in _cut(pictures)
        ]
        cuts += [
            (_sound_shard, folder / f"mels-{start}.npz", (pack.folder, [one for one, _ in part], sounds))
            for start, part in _cut(heard)
        ]
        make_shards(cuts)
        self.pictures = [np.load(path, mmap_mode="r") for make, path, _ in cuts if make is _picture_shard]
        shards = [np.load(path) for make, path, _ in cuts if make is _sound_shard]
        self.mels = np.concatenate([shard["mels"] for shard in shards])  # [F, M]
        self.offsets = np.concatenate([[0], np.concatenate([shard["lengths"] for shard in shards]).cumsum()])  # [N + 1]
        self.names = [name for _, name in pictures]
        self.words = [words for _, words in heard]
        self.files = [ref.file for ref, _ in pictures], [one.file if isinstance(one, Ref) else "" for one, _ in heard]

    def picture(self, index: int) -> np.ndarray:
        """uint8 [S, S, 3]."""
        return self.pictures[index // SHARD][index % SHARD]

    def mel(self, index: int) -> np.ndarray:
        """float16 [frames, M] of one sound."""
        return self.mels[self.offsets[index] : self.offsets[index + 1]]

    def sound(self, index: int) -> tuple[np.ndarray, str]:
        """Its log-mel [frames, M] and its words."""
        return self.mel(index), self.words[index]


def named_pictures(pack: Pack, split: Split) -> Iterator[tuple[Ref, str]]:
    """Pictures with what they show, in a few words. A grocery is called by its kind and its class: `golden delicious
    apple`; a shape of easy-VQA by its colour and shape, where its questions say both."""
    shapes = _shapes(pack, split)
    for file in NAMED:
        for number, row in pack.rows(file, split):
            name = shapes.get(row["id"]) if file == "pictures/easy_vqa_images" else name_of(row)
            if name:
                yield Ref("image", file, number), name


def name_of(row: Row) -> str | None:
    """The name of what a picture shows, in lower case, without article and final point; None for longer captions."""
    name = plain(row["text"])
    if row["source"].startswith("marcusklasson/"):
        kind = plain(row["label"])
        name = name if name.endswith(kind) else f"{name} {kind}"
    return name if 0 < len(name.split()) <= NAME_WORDS else None


def plain(text: str) -> str:
    """A caption as a name: lower case, one space between words, without article and final point."""
    return re.sub(r"^(an?|the) ", "", " ".join(text.lower().split()).rstrip(".! "))


def _shapes(pack: Pack, split: Split) -> dict[str, str]:
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for _, row in pack.rows("pictures/easy_vqa_questions", split):
        if row["answer"] not in ("yes", "no"):
            kind = "shape" if row["answer"] in ("circle", "triangle", "rectangle") else "colour"
            said[row["image_id"]][kind] = row["answer"]
    return {image: f"{one['colour']} {one['shape']}" for image, one in said.items() if len(one) == 2}


def recorded(pack: Pack, split: Split) -> Iterator[tuple[Ref, str]]:
    """Recordings with the words in them."""
    for file in RECORDED:
        for number, row in pack.rows(file, split):
            if not row["audio"]:
                continue
            words = f"({row['label']})" if file.startswith("sounds/") else spoken_words(row["text"])
            if words:
                yield Ref("audio", file, number), words


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def spoken_words(text: str) -> str:
    """A transcript as it is learned: lower case, no punctuation but apostrophes, small numbers in words; empty for what
    holds other numbers."""
    words = re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split()
    words = [DIGITS[int(word)] if word.isdigit() and int(word) < len(DIGITS) else word for word in words]
    return "" if any(character.isdigit() for word in words for character in word) else " ".join(words)


def sentences(pack: Pack, split: Split) -> list[str]:
    """Sentences of three to twelve plain words from the pack's texts and transcripts, in the order of the files."""
    texts: list[str] = [words for ref, words in recorded(pack, split) if "speechocean" in ref.file]
    for _, row in pack.rows("text/gutenberg", split):
        texts += re.split(r"[.!?;:,]\s|\n\n|--", row["text"])
    for _, row in pack.rows("text/wordnet", split):
        texts += (row["examples"] or "").split(" | ")
    texts += [row["question"] for _, row in pack.rows("text/qed", split)]
    texts += [name for _, name in named_pictures(pack, split)]
    found = dict.fromkeys(spoken_words(text) for text in texts if not re.search(r"\d", text))
    return [words for words in found if 3 <= len(words.split()) <= 12 and len(words) < 80]


def spoken(pack: Pack, split: Split, count: int, seed: int) -> Iterator[Utterance]:
    """`count` sentences of the pack, each in a voice, a room and noise of its own; in every second one, names of its
    pictures are said as questions that join a voice with a picture have them."""
    rng = random.Random(f"{seed}/{split}/sentences")
    texts = sentences(pack, split) if count else []
    names = sorted({spoken_words(name) for _, name in named_pictures(pack, split)} - {""}) if count else []
    for _ in range(count):
        words = rng.choice(texts)
        if names and rng.random() < 0.5:
            said = [rng.choice(names) for _ in range(3)]
            words = rng.choice((*(f"{before} {a(said[0])}" for before in BEFORE), f"{said[0]} {said[1]} or {said[2]}"))
        yield Utterance(words, topic="thing", style=rng.getrandbits(32))


# What is said before a name, in the questions that join a voice with a picture.
BEFORE = THIS_IS, I_SEE, IS_THIS = "this is", "i see", "is this"


def a(name: str) -> str:
    """`a cup`, `an apple`."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _cut(items: list) -> Iterator[tuple[int, list]]:
    return ((start, items[start : start + SHARD]) for start in range(0, len(items), SHARD))


def _picture_shard(path: Path, folder: Path, refs: list[Ref], size: int) -> None:
    pack, pictures = Pack(folder), []
    for ref in refs:
        picture = Image.open(io.BytesIO(pack.medium(ref))).convert("RGB")
        pictures.append(np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)))
    np.save(path, np.stack(pictures))


def _sound_shard(path: Path, folder: Path, heard: list[Ref | Utterance], sounds: AudioProcessor) -> None:
    pack, mels = Pack(folder), []
    for one in heard:
        wave = load_audio(pack.medium(one)) if isinstance(one, Ref) else speak(one)
        mels.append(sounds(wave)[:, :LONGEST].T.astype(np.float16))
    np.savez(path, mels=np.concatenate(mels), lengths=np.array([len(mel) for mel in mels]))
