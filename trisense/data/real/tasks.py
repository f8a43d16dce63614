"""Tasks about one source: what is asked of a picture, a recording or a text of a pack, and how it is measured.

A task has subjects, found once, and makes a question about one of them. It is measured with its first phrasing.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from trisense.data.real.bank import DIGITS, name_of, named_pictures, plain, recorded, sentences
from trisense.data.real.pack import Pack, Ref, Split
from trisense.data.real.sample import Given, Score, Spoken
from trisense.data.world.facts import COLOURS, NUMBERS, Scene, Thing
from trisense.data.world.single import yes_no

# A passage is cut to so many words around its answer.
WINDOW = 80


@dataclass(frozen=True)
class Task:
    """subjects: of a pack and a split, whatever `ask` takes. ask: a question about one of them. alone: the task that
    asks the same without what this one puts beside it; both are measured on the same questions."""

    subjects: Callable[[Pack, Split], Sequence[Any]]
    ask: Callable[[random.Random, Any], Asked]
    score: Score = "exact"
    alone: str = ""


class Asked(NamedTuple):
    """A question about what is given; accepted: other answers that are right too."""

    given: tuple[Given, ...]
    question: str
    answer: str
    accepted: tuple[str, ...] = ()


class Measuring(random.Random):
    """Chance where a model is measured: everything is asked in its first phrasing."""


def phrase(rng: random.Random, phrasings: Sequence[str]) -> str:
    """One of several ways to ask; the first as often as all others together."""
    if isinstance(rng, Measuring) or len(phrasings) == 1 or rng.random() < 0.5:
        return phrasings[0]
    return rng.choice(phrasings[1:])


NAME = ("What is this?", "What is in the picture?", "What does the picture show?", "Name what you see.")
SAY = ("What does the speaker say?", "What is said?", "Write down what you hear.")
CANNOT_TELL = "I can't tell."
SOUND = ("What makes this sound?", "What do you hear?", "Which sound is this?")


def _pictures(file: str) -> Callable[[Pack, Split], Sequence[Any]]:
    def found(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
        return [(ref, name) for ref, name in named_pictures(pack, split) if ref.file == file]

    return found


def _name(rng: random.Random, subject: tuple[Ref, str]) -> Asked:
    return Asked((subject[0],), phrase(rng, NAME), subject[1])


def _emoji_in_another_style(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
    """Names that training learns, in drawings that it never sees; the same for every split, for measuring only."""
    emoji = _pictures("pictures/noto72")(pack, "train")
    return [(replace(ref, style=number + 1), name) for number, (ref, name) in enumerate(emoji)]


def _groceries(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
    file = "pictures/grocery"
    return [(Ref("image", file, number), plain(row["label"])) for number, row in pack.rows(file, split)]


def _grocery(rng: random.Random, subject: tuple[Ref, str]) -> Asked:
    asked = phrase(rng, ("Which kind of grocery is this?", "What kind of food is in the picture?"))
    return Asked((subject[0],), asked, subject[1])


def _shape_questions(pack: Pack, split: Split) -> list[tuple[Ref, str, str]]:
    file = "pictures/easy_vqa_images"
    refs = {row["id"]: Ref("image", file, number) for number, row in pack.rows(file, split)}
    questions = pack.rows("pictures/easy_vqa_questions", split)
    return [(refs[row["image_id"]], row["question"], row["answer"]) for _, row in questions]


def _asked(rng: random.Random, subject: tuple[Ref, str, str]) -> Asked:
    ref, question, answer = subject
    return Asked((ref,), question[0].upper() + question[1:], answer)


def _statements(pack: Pack, split: Split) -> list[tuple[Ref, str, str]]:
    files = ("scenes/nlvr_train", "scenes/nlvr_test_u") if split == "train" else ("scenes/nlvr_dev",)
    return [
        (Ref("image", file, number), " ".join(row["text"].split()), yes_no(row["answer"] == "true"))
        for file in files
        for number, row in pack.rows(file, split)
    ]


def _statement(rng: random.Random, subject: tuple[Ref, str, str]) -> Asked:
    ref, text, answer = subject
    statement = text.rstrip(".") + "."
    asked = phrase(rng, (f"Is this true? {statement}", f"{statement} Is that so?", f"True or false? {statement}"))
    truth = "true" if answer == "yes" else "false"
    if asked.startswith("True"):
        return Asked((ref,), asked, truth, (answer,))
    return Asked((ref,), asked, answer, (truth,))


TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """0 to 99: `forty two`."""
    if number < 20:
        return (NUMBERS + TEENS)[number]
    return TENS[number // 10 - 2] + (f" {NUMBERS[number % 10]}" if number % 10 else "")


def _numbers(pack: Pack, split: Split) -> Sequence[int]:
    return range(100)


def _drawn_number(rng: random.Random, number: int) -> Asked:
    asked = phrase(rng, ("Which number does the picture show?", "What number is in the picture?", "Read the number."))
    return Asked((_lettering(rng, "number", str(number)),), asked, in_words(number), (str(number),))


def _drawn_words(pack: Pack, split: Split) -> list[str]:
    """Short words of names and recordings; those of dev that train has not."""

    def of(split: Split) -> set[str]:
        texts = [name for _, name in named_pictures(pack, split)] + [words for _, words in recorded(pack, split)]
        return {word for text in texts for word in text.split() if re.fullmatch("[a-z]{2,6}", word)}

    return sorted(of("train") if split == "train" else of("dev") - of("train"))


def _drawn_word(rng: random.Random, word: str) -> Asked:
    asked = phrase(rng, ("Which word does the picture show?", "What word is in the picture?", "Read the word."))
    return Asked((_lettering(rng, "word", word),), asked, word)


def _lettering(rng: random.Random, kind: str, text: str) -> Scene:
    """A number or a word somewhere in a picture of the small world, in one of its fonts."""
    size = rng.choice(("small", "large")) if kind == "number" else "large"
    thing = Thing(kind, rng.choice(tuple(COLOURS)), size, rng.randrange(3), rng.randrange(3), text=text)
    return Scene((thing,), rng.getrandbits(31))


def lettered(scene: Scene) -> str:
    """What a drawn number or word reads, in words."""
    text = scene.things[0].text
    return in_words(int(text)) if scene.things[0].kind == "number" else text


def _nameless(pack: Pack, split: Split) -> list[Ref]:
    """Pictures of many things, which have no name; in training also named ones of which nothing is left."""
    file = "scenes/nlvr_train" if split == "train" else "scenes/nlvr_dev"
    scenes = [Ref("image", file, number) for number, _ in pack.rows(file, split)]
    if split == "dev":
        return scenes
    return scenes + [replace(ref, spoilt=number + 1) for number, (ref, _) in enumerate(named_pictures(pack, split))]


def _nameless_picture(rng: random.Random, ref: Ref) -> Asked:
    return Asked((ref,), phrase(rng, NAME), CANNOT_TELL)


def _wordless(rng: random.Random, subject: tuple[Ref, str]) -> Asked:
    """A sound in which nobody speaks."""
    return Asked((subject[0],), phrase(rng, SAY), CANNOT_TELL)


def _speech(*files: str) -> Callable[[Pack, Split], Sequence[Any]]:
    def found(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
        return [(ref, words) for ref, words in recorded(pack, split) if ref.file in files]

    return found


def _say(rng: random.Random, subject: tuple[Given, str]) -> Asked:
    return Asked((subject[0],), phrase(rng, SAY), subject[1])


def _digits_of_many(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
    """Digits among the commands, whose speakers are all others in dev than in train."""
    return [(ref, word) for ref, word in _speech("speech/speech_commands")(pack, split) if word in DIGITS]


def _digit(rng: random.Random, subject: tuple[Ref, str]) -> Asked:
    ref, word = subject
    asked = phrase(rng, ("Which digit is spoken?", "Which number does the speaker say?", *SAY))
    return Asked((ref,), asked, word, (str(DIGITS.index(word)),))


DETAILS = {
    "coffeeDrink": "drink",
    "size": "size",
    "roast": "roast",
    "numberOfShots": "number of shots",
    "milkAmount": "amount of milk",
    "sugarAmount": "amount of sugar",
}


def _orders(pack: Pack, split: Split) -> list[tuple[Ref, str, str]]:
    """Recorded orders at a bar, which have no transcript, with each detail that is known of them."""
    file = "speech/speech_to_intent"
    return [
        (Ref("audio", file, number), DETAILS[slot], " ".join(value.split()))
        for number, row in pack.rows(file, split)
        for slot, value in json.loads(row["answer"])["slots"].items()
        if slot in DETAILS
    ]


def _order(rng: random.Random, subject: tuple[Ref, str, str]) -> Asked:
    ref, detail, value = subject
    asked = phrase(
        rng, ("Which {} does the speaker order?", "Which {} does the speaker ask for?", "What {} is ordered?")
    )
    return Asked((ref,), asked.format(detail), value)


def _spoken(rng: random.Random, words: str) -> Asked:
    return _say(rng, (Spoken(words, rng.getrandbits(32)), words))


def _sounds(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
    return [(ref, words.strip("()")) for ref, words in recorded(pack, split) if ref.file.startswith("sounds/")]


def _effects(pack: Pack, split: Split) -> list[tuple[Ref, str]]:
    file = "sounds/tuxpaint_effects"
    # Effects of symbols are voices that say what they are called.
    rows = [(number, row) for number, row in pack.rows(file, split) if row["label"] != "symbols"]
    found = [(Ref("audio", file, number), name_of(row)) for number, row in rows]
    return [(ref, name) for ref, name in found if name]


def _sound(rng: random.Random, subject: tuple[Ref, str]) -> Asked:
    return Asked((subject[0],), phrase(rng, SOUND), subject[1])


def _passages(pack: Pack, split: Split) -> list[tuple[str, str, tuple[str, ...]]]:
    found = []
    for _, row in pack.rows("text/qed", split):
        answers = tuple(row["answers"]) or (row["answer"],)
        window = cut(row["text"], answers[0])
        if window:
            question = row["question"].strip()
            found.append((window, f"{question[0].upper()}{question[1:].rstrip('?')}?", answers))
    return found


def cut(passage: str, answer: str, words: int = WINDOW) -> str | None:
    """About `words` words of a passage around where the answer stands; None where it does not."""
    text = re.sub(r" ([.,;:?!)'])", r"\1", " ".join(passage.replace("``", '"').replace("''", '"').split()))
    place = text.find(answer)
    if place < 0:
        return None
    before, after = text[:place].split(), text[place:].split()
    start = max(0, len(before) - words // 2)
    return " ".join((before + after)[start : start + words])


def _passage(rng: random.Random, subject: tuple[str, str, tuple[str, ...]]) -> Asked:
    text, question, answers = subject
    return Asked((text,), question, answers[0], answers[1:])


def _definitions(pack: Pack, split: Split) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (row["text"], tuple(row["label"].split(";")))
        for _, row in pack.rows("text/wordnet", split)
        if row["text"] and len(row["text"].split()) <= 16
    ]


def _definition(rng: random.Random, subject: tuple[str, tuple[str, ...]]) -> Asked:
    return Asked((), f"What does {subject[1][0]} mean?", subject[0])


def _meaning(rng: random.Random, subject: tuple[str, tuple[str, ...]]) -> Asked:
    return Asked((), f"Which word means: {subject[0]}?", subject[1][0], subject[1][1:])


def _trivia(pack: Pack, split: Split) -> list[tuple[str, tuple[str, ...], str]]:
    return [
        (mended(row["question"]), tuple(map(mended, row["choices"])), mended(row["answer"]))
        for _, row in pack.rows("text/trivia", split)
        if row["answer"] in row["choices"] and len(row["question"].split()) <= 30
    ]


def mended(text: str) -> str:
    """UTF-8 that the source once read as Windows' code page (`Shatnerâ€™s`), as it was meant."""
    try:
        return text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return text


def _choice(rng: random.Random, subject: tuple[str, tuple[str, ...], str]) -> Asked:
    question, choices, answer = subject
    return Asked((f"Choose: {'; '.join(choices)}.",), question, answer)


def _unaided(rng: random.Random, subject: tuple[str, tuple[str, ...], str]) -> Asked:
    """A question of the quiz with nothing that would answer it."""
    return Asked((), subject[0], CANNOT_TELL)


def _continued(pack: Pack, split: Split) -> list[tuple[str, str]]:
    found = []
    for _, row in pack.rows("text/gutenberg", split):
        words = row["text"].split()
        for start in range(0, len(words) - 40, 120):
            found.append((" ".join(words[start : start + 24]), " ".join(words[start + 24 : start + 34])))
    return found


def _continue(rng: random.Random, subject: tuple[str, str]) -> Asked:
    return Asked((subject[0],), "How does the text go on?", subject[1])


SPEECHOCEAN = ("speech/speechocean762_train_1", "speech/speechocean762_train_2")
SINGLE: dict[str, Task] = {
    "name an emoji": Task(_pictures("pictures/noto72"), _name),
    "name an emoji, another style": Task(_emoji_in_another_style, _name),
    "name a drawing": Task(
        lambda pack, split: [
            *_pictures("pictures/art4apps")(pack, split),
            *_pictures("pictures/tuxpaint")(pack, split),
        ],
        _name,
    ),
    "name a grocery": Task(_groceries, _grocery),
    "name a product": Task(_pictures("pictures/grocery"), _name),
    "shapes": Task(_shape_questions, _asked),
    "statements about scenes": Task(_statements, _statement),
    "drawn numbers": Task(_numbers, _drawn_number),
    "drawn words": Task(_drawn_words, _drawn_word),
    "spoken digits": Task(_speech("speech/fsdd"), _digit),
    "spoken digits, unheard speakers": Task(_digits_of_many, _digit),
    "commands": Task(_speech("speech/speech_commands", "speech/wake_words"), _say),
    "spoken words": Task(_speech("speech/gcompris_en"), _say),
    "orders": Task(_orders, _order),
    "read sentences": Task(_speech(*SPEECHOCEAN), _say, "wer"),
    "synthetic speech": Task(sentences, _spoken, "wer"),
    "sounds": Task(_sounds, _sound),
    "sound effects": Task(_effects, _sound),
    "nothing to name": Task(_nameless, _nameless_picture, "refuses"),
    "nobody speaks": Task(_sounds, _wordless, "refuses"),
    "passages": Task(_passages, _passage, "f1"),
    "definitions": Task(_definitions, _definition, "f1"),
    "words": Task(_definitions, _meaning),
    "trivia": Task(_trivia, _choice),
    "nothing given": Task(_trivia, _unaided, "refuses"),
    "everyday English": Task(_continued, _continue, "f1"),
}
