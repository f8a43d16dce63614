"""A pack of real data in little: every file of docs/spark.md with a few rows, made of noise and tones."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

NAMES = ("red apple", "pear", "dog", "blue boat", "cup", "tall tree", "green cat", "old house", "fish", "yellow hat")
WORDS = ("bed", "cat", "happy", "zero", "five", "computer")


def picture(seed: int, width: int = 40, height: int = 40) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[8:-8, 8:-8] = rng.integers(0, 256, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


def sound(seed: int, seconds: float = 0.5) -> bytes:
    tone = np.sin(np.arange(round(16_000 * seconds)) * 2 * np.pi * (200 + 50 * (seed % 20)) / 16_000)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((tone * 8000).astype("<i2").tobytes())
    return out.getvalue()


def rows(kind: str) -> list[dict[str, Any]]:
    """Rows of one file; the last third is dev."""
    named = [
        {
            "id": f"{kind}/{i}",
            "image": picture(i),
            "text": f"A {name}.",
            "label": "things",
            "source": f"owner/{kind}:{i}",
        }
        for i, name in enumerate(NAMES)
    ]
    spoken = [
        {"id": f"{kind}/{i}", "audio": sound(i), "text": word, "label": str(i), "speaker": "a", "source": "owner/x"}
        for i, word in enumerate(WORDS)
    ]
    truth = ("true", "false", "true", "true", "false", "true")
    if kind == "grocery":
        return [
            {**row, "text": "Royal", "label": f"Apple{i % 2}", "source": "marcusklasson/x"}
            for i, row in enumerate(named)
        ]
    if kind == "easy_vqa_images":
        return [{"id": f"e{i}", "image": picture(i), "source": "owner/x"} for i in range(6)]
    if kind == "easy_vqa_questions":
        both = (("what shape is in the image?", "circle"), ("what color is the shape?", "teal"))
        return [
            {"id": f"q{i}/{n}", "image_id": f"e{i}", "question": question, "answer": answer, "source": "owner/x"}
            for i in range(6)
            for n, (question, answer) in enumerate((*both, ("is there a circle?", "yes")))
        ]
    if kind.startswith("nlvr"):
        return [
            {
                "id": f"n{i}",
                "image": picture(i, 80, 20),
                "text": f"There is  {i} box",
                "answer": answer,
                "source": "owner/x",
            }
            for i, answer in enumerate(truth)
        ]
    if kind == "speech_to_intent":
        slots = ({"coffeeDrink": "iced mocha", "size": "large"}, {"coffeeDrink": "latte"})
        return [
            {
                "id": f"i{i}",
                "audio": sound(i),
                "answer": json.dumps({"intent": "orderDrink", "slots": slots[i % 2]}),
                "label": "orderDrink",
                "source": "o/x",
            }
            for i in range(6)
        ]
    if kind == "tuxpaint_effects":
        return [
            {
                "id": f"t{i}",
                "audio": sound(i),
                "label": "things",
                "text": f"A {NAMES[i]}.",
                "image_id": f"tuxpaint/{i}",
                "source": "owner/x",
            }
            for i in (0, 1, 2, 7, 8, 9)
        ]
    if kind in ("esc10_baby_dog", "instruments"):
        return [
            {"id": f"s{i}", "audio": sound(i), "label": ("dog barking", "flute")[i % 2], "source": "o/x"}
            for i in range(6)
        ]
    if kind == "wordnet":
        return [
            {
                "id": f"w{i}",
                "text": f"the meaning of number {'abcdef'[i]}",
                "label": f"word{i};other",
                "examples": "it was so good | no",
                "source": "o/x",
            }
            for i in range(6)
        ]
    if kind == "gutenberg":
        return [
            {"id": f"g{i}", "text": "She went to the window and looked out. " * 12, "label": "book", "source": "o/x"}
            for i in range(6)
        ]
    if kind == "trivia":
        return [
            {
                "id": f"v{i}",
                "question": f"Who built town {i}?",
                "choices": ["the sea", NAMES[i % len(NAMES)].title()],
                "answer": NAMES[i % len(NAMES)].title(),
                "label": "x",
                "source": "o/x",
            }
            for i in range(24)
        ]
    if kind == "qed":
        return [
            {
                "id": f"p{i}",
                "text": f"In {1900 + i} the town , it is said , was built by {NAMES[i]} .",
                "question": f"who built town {i}",
                "answer": NAMES[i],
                "answers": [NAMES[i]],
                "label": str(i),
                "source": "o/x",
            }
            for i in range(6)
        ]
    return named if kind in ("noto72", "art4apps", "tuxpaint") else spoken


FILES = (
    *(
        f"pictures/{kind}"
        for kind in ("noto72", "art4apps", "tuxpaint", "grocery", "easy_vqa_images", "easy_vqa_questions")
    ),
    *(f"scenes/{kind}" for kind in ("nlvr_train", "nlvr_dev", "nlvr_test_u")),
    *(f"speech/speechocean762_train_{part}" for part in (1, 2)),
    *(f"speech/{kind}" for kind in ("fsdd", "speech_commands", "wake_words", "gcompris_en", "speech_to_intent")),
    *(f"sounds/{kind}" for kind in ("esc10_baby_dog", "instruments", "tuxpaint_effects")),
    *(f"text/{kind}" for kind in ("wordnet", "gutenberg", "trivia", "qed")),
)


def write(folder: Path) -> Path:
    for file in FILES:
        kind = file.split("/")[1]
        found = rows(kind)
        for number, row in enumerate(found):
            row["split"] = "dev" if number >= len(found) * 2 / 3 else "train"
            if kind.startswith("nlvr"):
                row["split"] = "dev" if kind == "nlvr_dev" else "train"
            if kind == "fsdd":
                row["text"] = ("zero", "one")[number % 2]
            if kind.startswith("speechocean"):
                row["text"] = f"i see the {WORDS[number]}"
        path = folder / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), path)
    return folder
