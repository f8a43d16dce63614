"""Questions about one sense: small functions that return a `Question`, or None when it does not fit the context."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations

from trisense.data.world.contexts import Context
from trisense.data.world.facts import COLOURS, KINDS, NUMBERS, PEOPLE, Scene, Thing, place_name

NOT_SHOWN = "The picture does not show that."
NOT_SAID = "The speaker does not say that."
NOT_WRITTEN = "The text does not say that."


@dataclass(frozen=True)
class Question:
    """`senses`: where the answer is; empty when it is in none of those given (then `answer` says so). `step`: where one
    thing must be found before another, the first, in words; `answer` begins with it."""

    text: str
    answer: str
    senses: tuple[str, ...]
    task: str = ""
    step: str = ""

    def without_step(self) -> Question:
        """The same question, answered in a word."""
        return replace(self, answer=self.answer[len(self.step) :].lstrip(":. "), step="")


# --- what the questions look up ------------------------------------------------------------------------------------


def things_of(context: Context) -> list[Thing]:
    return [thing for thing in context.scene.things if thing.kind in KINDS] if context.scene else []


def find(context: Context, kind: str, colour: str = "") -> list[Thing]:
    return [thing for thing in things_of(context) if thing.kind == kind and (not colour or thing.colour == colour)]


def call(rng: random.Random, context: Context, thing: Thing) -> str:
    """What to call a thing so that no other thing of the picture is meant."""
    alone = len(find(context, thing.kind)) == 1
    return thing.kind if alone and rng.random() < 0.7 else thing.name


def yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def _plural(kind: str) -> str:
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")


_SIDES: dict[str, Callable[[Thing, Thing], int]] = {
    "left of": lambda a, b: b.column - a.column,
    "right of": lambda a, b: a.column - b.column,
    "above": lambda a, b: b.row - a.row,
    "below": lambda a, b: a.row - b.row,
}


def related(rng: random.Random, a: Thing, b: Thing) -> tuple[str, bool] | None:
    """A relation that clearly holds or clearly does not between two things, half of the time each."""
    clear = [side for side, offset in _SIDES.items() if offset(a, b) != 0]
    if not clear:
        return None
    side = rng.choice(clear)
    return side, _SIDES[side](a, b) > 0


# --- questions about the picture -----------------------------------------------------------------------------------


def ask_colour(rng: random.Random, c: Context) -> Question | None:
    singles = [thing for thing in things_of(c) if len(find(c, thing.kind)) == 1]
    form = rng.choice(("What color is the {}?", "Which color does the {} have?", "What is the color of the {}?"))
    if rng.random() < 0.12:
        kind = rng.choice(KINDS)
        if not find(c, kind):
            return Question(form.format(kind), NOT_SHOWN, (), "colour")
    if not singles:
        return None
    thing = rng.choice(singles)
    return Question(form.format(thing.kind), thing.colour, ("image",), "colour")


def _shown_as(thing: Thing) -> str:
    if thing.kind == "number":
        return f"the number {NUMBERS[int(thing.text)]}"
    return f"the word {thing.text}" if thing.kind == "word" else thing.name


def in_words(scene: Scene) -> str:
    """All things of a picture, row by row."""
    return ", ".join(_shown_as(thing) for thing in sorted(scene.things, key=lambda thing: (thing.row, thing.column)))


def ask_place(rng: random.Random, c: Context) -> Question | None:
    assert c.scene
    form = rng.choice(("What is at the {}?", "What is in the {}?", "Which thing is at the {}?"))
    if rng.random() < 0.1:
        row, column = rng.randrange(3), rng.randrange(3)
        if not any((thing.row, thing.column) == (row, column) for thing in c.scene.things):
            return Question(form.format(place_name(row, column)), "nothing", ("image",), "place")
    thing = rng.choice(c.scene.things)
    return Question(form.format(thing.place), _shown_as(thing), ("image",), "place")


def ask_all(rng: random.Random, c: Context) -> Question | None:
    assert c.scene
    text = rng.choice(("What is in the picture?", "Name the things in the picture.", "Describe the picture."))
    return Question(text, in_words(c.scene), ("image",), "all")


def ask_where(rng: random.Random, c: Context) -> Question | None:
    form = rng.choice(("Where is the {}?", "Where in the picture is the {}?"))
    if rng.random() < 0.12:
        kind = rng.choice(KINDS)
        if not find(c, kind):
            return Question(form.format(kind), NOT_SHOWN, (), "where")
    if not (things := things_of(c)):
        return None
    thing = rng.choice(things)
    return Question(form.format(call(rng, c, thing)), thing.place, ("image",), "where")


def ask_count(rng: random.Random, c: Context) -> Question | None:
    assert c.scene
    things = things_of(c)
    choice = rng.random()
    if choice < 0.3 and len(things) == len(c.scene.things):
        return Question("How many things are in the picture?", NUMBERS[len(things)], ("image",), "count")
    if choice < 0.65:
        colour = rng.choice(things).colour if things and rng.random() < 0.8 else rng.choice(tuple(COLOURS))
        count = sum(thing.colour == colour for thing in c.scene.things)
        if count != sum(thing.colour == colour for thing in things):
            return None  # drawn letters of that colour: is a word a thing?
        return Question(f"How many {colour} things are there?", NUMBERS[count], ("image",), "count")
    kind = rng.choice(things).kind if things and rng.random() < 0.8 else rng.choice(KINDS)
    return Question(f"How many {_plural(kind)} are there?", NUMBERS[len(find(c, kind))], ("image",), "count")


def ask_exists(rng: random.Random, c: Context) -> Question | None:
    form = rng.choice(("Is there a {}?", "Does the picture show a {}?", "Is a {} in the picture?"))
    things = things_of(c)
    if things and rng.random() < 0.5:
        thing = rng.choice(things)
        return Question(form.format(rng.choice((thing.name, thing.kind))), "yes", ("image",), "exists")
    if things and rng.random() < 0.6:  # the right kind in another thing's colour: colours must be bound to things
        kind, colour = rng.choice(things).kind, rng.choice(rng.choice((tuple(COLOURS), [t.colour for t in things])))
        if not find(c, kind, colour):
            return Question(form.format(f"{colour} {kind}"), "no", ("image",), "exists")
    kind = rng.choice(KINDS)
    return None if find(c, kind) else Question(form.format(kind), "no", ("image",), "exists")


def ask_relation(rng: random.Random, c: Context) -> Question | None:
    pairs = list(permutations(things_of(c), 2))
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    if (found := related(rng, a, b)) is None:
        return None
    text = f"Is the {call(rng, c, a)} {found[0]} the {call(rng, c, b)}?"
    return Question(text, yes_no(found[1]), ("image",), "relation")


def ask_size(rng: random.Random, c: Context) -> Question | None:
    if not (things := things_of(c)):
        return None
    thing = rng.choice(things)
    form = rng.choice(("Is the {} small or large?", "What size is the {}?"))
    return Question(form.format(call(rng, c, thing)), thing.size, ("image",), "size")


def ask_drawn(rng: random.Random, c: Context) -> Question | None:
    assert c.scene
    kind = rng.choice(("number", "word"))
    form = rng.choice(("What {} is in the picture?", "Which {} does the picture show?"))
    drawn = [thing for thing in c.scene.things if thing.kind == kind]
    if not drawn:
        return Question(form.format(kind), NOT_SHOWN, (), "drawn") if rng.random() < 0.2 else None
    answer = NUMBERS[int(drawn[0].text)] if kind == "number" else drawn[0].text
    return Question(form.format(kind), answer, ("image",), "drawn")


# --- questions about the sound -------------------------------------------------------------------------------------


def ask_transcript(rng: random.Random, c: Context) -> Question | None:
    assert c.utterance
    text = rng.choice(("What does the speaker say?", "What is said?", "Write down what the speaker says."))
    return Question(text, c.utterance.words, ("audio",), "transcript")


def ask_named(rng: random.Random, c: Context) -> Question | None:
    """Thing, colour, number or person that the speaker names; or that none was named."""
    assert c.utterance
    u = c.utterance
    asked = {
        "Which thing does the speaker name?": u.kinds[0] if len(u.kinds) == 1 else "",
        "Which color does the speaker name?": u.colours[0] if u.colours else "",
        "Which number does the speaker say?": u.number,
        "Who does the speaker name?": u.people[0] if u.people else "",
    }
    if len(u.kinds) > 1:
        del asked["Which thing does the speaker name?"]
    known = [text for text, answer in asked.items() if answer]
    text = rng.choice(known) if known and rng.random() < 0.8 else rng.choice(list(asked))
    return Question(text, asked[text] or NOT_SAID, ("audio",) if asked[text] else (), "named")


def ask_mentions(rng: random.Random, c: Context) -> Question | None:
    assert c.utterance
    u = c.utterance
    if not u.kinds:
        return None
    kind = rng.choice(u.kinds) if rng.random() < 0.5 else rng.choice(KINDS)
    form = rng.choice(("Does the speaker name a {}?", "Does the speaker talk about a {}?"))
    return Question(form.format(kind), yes_no(kind in u.kinds), ("audio",), "mentions")


def ask_spoken_fact(rng: random.Random, c: Context) -> Question | None:
    assert c.utterance
    u = c.utterance
    if u.topic != "has":
        return None
    person, colour, kind = u.people[0], u.colours[0], u.kinds[0]
    text, answer = rng.choice(
        (
            (f"According to the speaker, who has the {kind}?", person),
            (f"According to the speaker, what does {person} have?", f"{colour} {kind}"),
            (f"According to the speaker, what color is the {kind}?", colour),
        )
    )
    return Question(text, answer, ("audio",), "spoken fact")


# --- questions about the text --------------------------------------------------------------------------------------


def ask_written_fact(rng: random.Random, c: Context) -> Question | None:
    n = c.note
    assert n
    if n.topic != "has":
        return None
    i = rng.randrange(len(n.people))
    person, kind, thing = n.people[i], n.kinds[i], f"{n.colours[i]} {n.kinds[i]}" if n.colours else n.kinds[i]
    asked = [(f"Who has the {kind}?", person), (f"What does {person} have?", thing), (f"Whose is the {kind}?", person)]
    if n.colours and not c.scene:  # with a picture there the color of "the cup" would be the picture's
        asked.append((f"What color is the {kind} of {person}?", n.colours[i]))
    text, answer = rng.choice(asked)
    if rng.random() < 0.12:
        other = rng.choice(PEOPLE)
        if other not in n.people:
            return Question(f"What does {other} have?", NOT_WRITTEN, (), "written fact")
    return Question(text, answer, ("text",), "written fact")


def ask_listed(rng: random.Random, c: Context) -> Question | None:
    n = c.note
    assert n
    if n.topic != "list":
        return None
    kind = rng.choice(n.kinds) if rng.random() < 0.5 else rng.choice(KINDS)
    text, answer = rng.choice(
        (
            (f"Is a {kind} on the list?", yes_no(kind in n.kinds)),
            ("What is first on the list?", n.kinds[0]),
            ("What is last on the list?", n.kinds[-1]),
            ("How many things are on the list?", NUMBERS[len(n.kinds)]),
        )
    )
    return Question(text, answer, ("text",), "listed")
