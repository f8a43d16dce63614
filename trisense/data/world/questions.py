"""Questions about the small world, with answers that are known because the facts are.

`compose` draws a context (any of a picture, a voice, a note) and asks about it. Each question is a small function below
that returns a `Question` or None when it does not fit the context; `senses` says which senses its answer needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations

from trisense.data.world.facts import (
    COLOURS,
    HELD_OUT,
    KINDS,
    NUMBERS,
    PEOPLE,
    SIGNS,
    SIZES,
    Note,
    Scene,
    Split,
    Thing,
    Topic,
    Utterance,
    place_name,
)

SENSES = ("image", "audio", "text")
NOT_SHOWN = "The picture does not show that."
NOT_SAID = "The speaker does not say that."
NOT_WRITTEN = "The text does not say that."
NOT_GIVEN = {"image": "There is no picture.", "audio": "There is no sound.", "text": "There is no text."}


@dataclass(frozen=True)
class Context:
    scene: Scene | None = None
    utterance: Utterance | None = None
    note: Note | None = None

    @property
    def senses(self) -> tuple[str, ...]:
        return tuple(s for s, fact in zip(SENSES, (self.scene, self.utterance, self.note), strict=True) if fact)


@dataclass(frozen=True)
class Question:
    """`senses`: where the answer is; empty when it is in none of those given (then `answer` says so)."""

    text: str
    answer: str
    senses: tuple[str, ...]
    task: str = ""


Utter = Callable[[random.Random, Topic, dict], Utterance | None]


# --- facts -------------------------------------------------------------------------------------------------------


def _pair(rng: random.Random, split: Split, colour: str = "", kind: str = "") -> tuple[str, str]:
    """A colour and a kind that go together in this split; what is given is kept."""
    for _ in range(100):
        if split == "unseen" and rng.random() < 0.6 and not (colour or kind):
            return rng.choice(sorted(HELD_OUT))
        pair = (colour or rng.choice(tuple(COLOURS)), kind or rng.choice(KINDS))
        if split == "unseen" or pair not in HELD_OUT:
            return pair
    raise AssertionError(f"no pair for {colour!r} {kind!r}")


def make_scene(rng: random.Random, split: Split) -> Scene:
    """One to six things in different cells; kinds mostly differ, so that `the cup` is usually one thing."""
    count = rng.choices((1, 2, 3, 4, 5, 6), (1, 3, 5, 5, 3, 2))[0]
    cells = rng.sample([(row, column) for row in range(3) for column in range(3)], count + 1)
    things: list[Thing] = []
    for row, column in cells[:count]:
        colour, kind = _pair(rng, split)
        if things and rng.random() < 0.2:  # the same kind again, to be counted
            colour, kind = _pair(rng, split, kind=rng.choice(things).kind)
        elif any(thing.kind == kind for thing in things):
            continue
        if any(thing.name == f"{colour} {kind}" for thing in things):
            continue
        shift = (rng.uniform(-0.14, 0.14), rng.uniform(-0.14, 0.14))
        things.append(Thing(kind, colour, rng.choice(SIZES), row, column, *shift))
    if rng.random() < 0.35:
        row, column = cells[count]
        kind, text = ("number", str(rng.randrange(10))) if rng.random() < 0.5 else ("word", rng.choice(SIGNS))
        things.append(Thing(kind, rng.choice(("black", "blue", "red", "green", "brown", "purple")), "large", row, column, text=text))
    return Scene(tuple(things), style=rng.getrandbits(32))


def make_utterance(rng: random.Random, topic: Topic, wish: dict, split: Split = "train") -> Utterance:
    """An utterance of a topic. `wish` may fix `kind`, `colour` ('' for none), `number`, `person`, `kinds`."""
    style = rng.getrandbits(32)
    if topic == "number":
        number = wish.get("number") or rng.choice(NUMBERS)
        words = rng.choice(("{}", "number {}", "the number {}")).format(number)
        return Utterance(words, topic, number=number, style=style)
    if topic == "person":
        person = wish.get("person") or rng.choice(PEOPLE)
        words = rng.choice(("{}", "it is {}", "this is {}")).format(person.lower())
        return Utterance(words, topic, people=(person,), style=style)
    if topic == "list":
        kinds = tuple(wish.get("kinds") or rng.sample(KINDS, rng.choice((2, 3))))
        the = rng.choice(("", "the ", "a "))
        said = [the + kind for kind in kinds]
        return Utterance(" ".join(said[:-1]) + " and " + said[-1], topic, kinds=kinds, style=style)
    colour, kind = _pair(rng, split, wish.get("colour", ""), wish.get("kind", ""))
    if topic == "has":
        person = wish.get("person") or rng.choice(PEOPLE)
        form = rng.choice(("{p} has the {c} {k}", "{p} has a {c} {k}", "the {c} {k} belongs to {p}"))
        words = form.format(p=person.lower(), c=colour, k=kind)
        return Utterance(words, topic, (colour,), (kind,), people=(person,), style=style)
    if wish.get("colour", None) == "" or (not wish.get("colour") and rng.random() < 0.5):
        words = rng.choice(("{}", "the {}", "a {}")).format(kind)
        return Utterance(words, "thing", kinds=(kind,), style=style)
    words = rng.choice(("{} {}", "the {} {}", "a {} {}")).format(colour, kind)
    return Utterance(words, "thing", (colour,), (kind,), style=style)


def make_note(rng: random.Random, split: Split, scene: Scene | None, utterance: Utterance | None) -> Note:
    """A note that often speaks of what the picture shows and the voice names, so that questions can join them."""
    shown = [thing for thing in scene.things if thing.kind in KINDS] if scene else []
    named = utterance.kinds if utterance else ()
    if rng.random() < 0.35:
        pool = [thing.kind for thing in shown if rng.random() < 0.5] + [kind for kind in named if rng.random() < 0.5]
        pool += rng.sample(KINDS, 3)
        kinds = tuple(dict.fromkeys(pool))[: rng.choice((2, 2, 3))]
        kinds = tuple(rng.sample(kinds, len(kinds)))
        text = rng.choice(("List: {}.", "To buy: {}.", "Please bring: {}.")).format(", ".join(kinds))
        return Note(text, "list", kinds=kinds)
    count = rng.choice((1, 2, 2, 3))
    people = rng.sample(PEOPLE, count)
    if utterance and utterance.people and utterance.people[0] not in people and rng.random() < 0.8:
        people[rng.randrange(count)] = utterance.people[0]
    coloured = rng.random() < 0.6
    pairs: list[tuple[str, str]] = []
    for _ in people:
        choice = rng.random()
        if shown and choice < 0.6:
            thing = rng.choice(shown)
            pair = (thing.colour, thing.kind) if rng.random() < 0.8 else _pair(rng, split, kind=thing.kind)
        elif named and choice < 0.8:
            pair = _pair(rng, split, kind=rng.choice(named))
        else:
            pair = _pair(rng, split)
        if pair[1] in [kind for _, kind in pairs]:
            pair = _pair(rng, split, kind=rng.choice([kind for kind in KINDS if kind not in [k for _, k in pairs]]))
        pairs.append(pair)
    form = rng.choice(("{p} has the {t}.", "{p} has a {t}.", "The {t} belongs to {p}."))
    said = [form.format(p=p, t=f"{c} {k}" if coloured else k) for p, (c, k) in zip(people, pairs, strict=True)]
    colours = tuple(colour for colour, _ in pairs) if coloured else ()
    return Note(" ".join(said), "has", tuple(people), colours, tuple(kind for _, kind in pairs))


def make_context(rng: random.Random, split: Split, utter: Utter, senses: Iterable[str], scene: Scene | None = None) -> Context:
    """A context with exactly these senses; voice and note lean on what the picture shows."""
    senses = set(senses)
    if "image" not in senses:
        scene = None
    elif scene is None:
        scene = make_scene(rng, split)
    shown = [thing for thing in scene.things if thing.kind in KINDS] if scene else []
    utterance = None
    if "audio" in senses:
        # A voice beside a note or a picture is about things and people; numbers fit a picture that shows one.
        weights = (4, 0.7, 6, 3, 0.7) if "text" in senses else (5, 2, 1.5, 2.5, 2)
        topic: Topic = rng.choices(("thing", "number", "person", "list", "has"), weights)[0]
        wish: dict = {}
        drawn = next((thing for thing in scene.things if thing.kind == "number"), None) if scene else None
        if topic == "number" and drawn and rng.random() < 0.5:
            wish = {"number": NUMBERS[int(drawn.text)]}
        elif topic == "thing" and shown and rng.random() < 0.65:
            thing = rng.choice(shown)
            wish = {"kind": thing.kind, "colour": rng.choice(("", thing.colour))}
        elif topic == "list" and shown and rng.random() < 0.7:
            others = [kind for kind in KINDS if kind not in {thing.kind for thing in shown}]
            kinds = [rng.choice(shown).kind, *rng.sample(others, rng.choice((1, 2)))]
            wish = {"kinds": tuple(rng.sample(kinds, len(kinds))), "kind": kinds[0]}
        utterance = utter(rng, topic, wish)
    note = make_note(rng, split, scene, utterance) if "text" in senses else None
    return Context(scene, utterance, note)


# --- what the questions look up ------------------------------------------------------------------------------------


def _things(context: Context) -> list[Thing]:
    return [thing for thing in context.scene.things if thing.kind in KINDS] if context.scene else []


def _find(context: Context, kind: str, colour: str = "") -> list[Thing]:
    return [thing for thing in _things(context) if thing.kind == kind and (not colour or thing.colour == colour)]


def _call(rng: random.Random, context: Context, thing: Thing) -> str:
    """What to call a thing so that no other thing of the picture is meant."""
    alone = len(_find(context, thing.kind)) == 1
    return thing.kind if alone and rng.random() < 0.7 else thing.name


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _plural(kind: str) -> str:
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")


_SIDES: dict[str, Callable[[Thing, Thing], int]] = {
    "left of": lambda a, b: b.column - a.column,
    "right of": lambda a, b: a.column - b.column,
    "above": lambda a, b: b.row - a.row,
    "below": lambda a, b: a.row - b.row,
}


def _related(rng: random.Random, a: Thing, b: Thing) -> tuple[str, bool] | None:
    """A relation that clearly holds or clearly does not between two things, half of the time each."""
    clear = [side for side, offset in _SIDES.items() if offset(a, b) != 0]
    if not clear:
        return None
    side = rng.choice(clear)
    return side, _SIDES[side](a, b) > 0


# --- questions about the picture -----------------------------------------------------------------------------------


def ask_colour(rng: random.Random, c: Context) -> Question | None:
    singles = [thing for thing in _things(c) if len(_find(c, thing.kind)) == 1]
    form = rng.choice(("What color is the {}?", "Which color does the {} have?", "What is the color of the {}?"))
    if rng.random() < 0.12:
        kind = rng.choice(KINDS)
        if not _find(c, kind):
            return Question(form.format(kind), NOT_SHOWN, (), "colour")
    if not singles:
        return None
    thing = rng.choice(singles)
    return Question(form.format(thing.kind), thing.colour, ("image",), "colour")


def _shown_as(thing: Thing) -> str:
    if thing.kind == "number":
        return f"the number {NUMBERS[int(thing.text)]}"
    return f"the word {thing.text}" if thing.kind == "word" else thing.name


def ask_place(rng: random.Random, c: Context) -> Question | None:
    assert c.scene
    form = rng.choice(("What is at the {}?", "What is in the {}?", "Which thing is at the {}?"))
    if rng.random() < 0.1:
        row, column = rng.randrange(3), rng.randrange(3)
        if not any((thing.row, thing.column) == (row, column) for thing in c.scene.things):
            return Question(form.format(place_name(row, column)), "nothing", ("image",), "place")
    thing = rng.choice(c.scene.things)
    return Question(form.format(thing.place), _shown_as(thing), ("image",), "place")


def ask_where(rng: random.Random, c: Context) -> Question | None:
    form = rng.choice(("Where is the {}?", "Where in the picture is the {}?"))
    if rng.random() < 0.12:
        kind = rng.choice(KINDS)
        if not _find(c, kind):
            return Question(form.format(kind), NOT_SHOWN, (), "where")
    if not (things := _things(c)):
        return None
    thing = rng.choice(things)
    return Question(form.format(_call(rng, c, thing)), thing.place, ("image",), "where")


def ask_count(rng: random.Random, c: Context) -> Question | None:
    assert c.scene
    things = _things(c)
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
    return Question(f"How many {_plural(kind)} are there?", NUMBERS[len(_find(c, kind))], ("image",), "count")


def ask_exists(rng: random.Random, c: Context) -> Question | None:
    form = rng.choice(("Is there a {}?", "Does the picture show a {}?", "Is a {} in the picture?"))
    things = _things(c)
    if things and rng.random() < 0.5:
        thing = rng.choice(things)
        return Question(form.format(rng.choice((thing.name, thing.kind))), "yes", ("image",), "exists")
    if things and rng.random() < 0.6:  # the right kind in another thing's colour: colours must be bound to things
        kind, colour = rng.choice(things).kind, rng.choice(rng.choice((tuple(COLOURS), [t.colour for t in things])))
        if not _find(c, kind, colour):
            return Question(form.format(f"{colour} {kind}"), "no", ("image",), "exists")
    kind = rng.choice(KINDS)
    return None if _find(c, kind) else Question(form.format(kind), "no", ("image",), "exists")


def ask_relation(rng: random.Random, c: Context) -> Question | None:
    pairs = list(permutations(_things(c), 2))
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    if (found := _related(rng, a, b)) is None:
        return None
    text = f"Is the {_call(rng, c, a)} {found[0]} the {_call(rng, c, b)}?"
    return Question(text, _yes(found[1]), ("image",), "relation")


def ask_size(rng: random.Random, c: Context) -> Question | None:
    if not (things := _things(c)):
        return None
    thing = rng.choice(things)
    form = rng.choice(("Is the {} small or large?", "What size is the {}?"))
    return Question(form.format(_call(rng, c, thing)), thing.size, ("image",), "size")


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
    return Question(form.format(kind), _yes(kind in u.kinds), ("audio",), "mentions")


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
            (f"Is a {kind} on the list?", _yes(kind in n.kinds)),
            ("What is first on the list?", n.kinds[0]),
            ("What is last on the list?", n.kinds[-1]),
            ("How many things are on the list?", NUMBERS[len(n.kinds)]),
        )
    )
    return Question(text, answer, ("text",), "listed")


# --- questions that join two senses --------------------------------------------------------------------------------

_NAMED = ("the thing the speaker names", "the thing that is named", "the named thing")


def _spoken_thing(c: Context) -> tuple[str, str] | None:
    """(colour or '', kind) when the voice names exactly one thing."""
    u = c.utterance
    return (u.colours[0] if u.colours else "", u.kinds[0]) if u and u.topic == "thing" else None


def ask_seen_named(rng: random.Random, c: Context) -> Question | None:
    if (named := _spoken_thing(c)) is None:
        return None
    colour, kind = named
    found = _find(c, kind, colour)
    thing = rng.choice(_NAMED)
    both = ("image", "audio")
    choice = rng.random()
    if choice < 0.25:
        form = rng.choice(("Is {} in the picture?", "Does the picture show {}?"))
        return Question(form.format(thing), _yes(bool(found)), both, "named, shown?")
    if len(found) > 1:
        return None
    if not found:
        form = rng.choice(("Where is {}?", "What size is {}?")) if colour else rng.choice(("Where is {}?", "What color is {}?"))
        return Question(form.format(thing), NOT_SHOWN, (), "named, where") if rng.random() < 0.4 else None
    if choice < 0.5 and not colour:
        return Question(f"What color is {thing}?", found[0].colour, both, "named, colour")
    if choice < 0.75:
        return Question(f"Where is {thing}?", found[0].place, both, "named, where")
    if choice < 0.8:
        return Question(f"What size is {thing}?", found[0].size, both, "named, size")
    others = [other for other in _things(c) if other != found[0]]
    if not others:
        return None
    other = rng.choice(others)
    if (relation := _related(rng, found[0], other)) is None:
        return None
    text = f"Is {thing} {relation[0]} the {_call(rng, c, other)}?"
    return Question(text, _yes(relation[1]), both, "named, relation")


def ask_spoken_number(rng: random.Random, c: Context) -> Question | None:
    assert c.scene and c.utterance
    drawn = [thing for thing in c.scene.things if thing.kind == "number"]
    if c.utterance.topic != "number" or not drawn:
        return None
    text = rng.choice(("Is the number the speaker says in the picture?", "Does the picture show the number that is said?"))
    return Question(text, _yes(NUMBERS[int(drawn[0].text)] == c.utterance.number), ("image", "audio"), "number, shown?")


def ask_spoken_list(rng: random.Random, c: Context) -> Question | None:
    assert c.utterance
    if c.utterance.topic != "list":
        return None
    shown = [kind for kind in c.utterance.kinds if _find(c, kind)]
    if len(shown) != 1:
        return None
    text = rng.choice(("Which of the things the speaker names is in the picture?", "Which named thing does the picture show?"))
    return Question(text, shown[0], ("image", "audio"), "spoken list")


def ask_owner(rng: random.Random, c: Context) -> Question | None:
    """Picture and note: where somebody's thing is, whether it is shown, who owns what is at a place."""
    n = c.note
    assert n
    if n.topic != "has":
        return None
    i = rng.randrange(len(n.people))
    person, found = n.people[i], _find(c, n.kinds[i], n.colours[i] if n.colours else "")
    both = ("image", "text")
    choice = rng.random()
    if choice < 0.3:
        text = rng.choice((f"Is the thing that {person} has in the picture?", f"Does the picture show what {person} has?"))
        return Question(text, _yes(bool(found)), both, "owned, shown?")
    if len(found) != 1:
        return None
    if choice < 0.6:
        return Question(f"Where is the thing that {person} has?", found[0].place, both, "owned, where")
    if choice < 0.75 and not n.colours:
        return Question(f"What color is the thing that {person} has?", found[0].colour, both, "owned, colour")
    return Question(f"Who has the thing at the {found[0].place}?", person, both, "owner at a place")


def ask_written_list(rng: random.Random, c: Context) -> Question | None:
    n = c.note
    assert n
    if n.topic != "list":
        return None
    shown = [kind for kind in n.kinds if _find(c, kind)]
    if rng.random() < 0.4:
        return Question(
            "Is everything on the list in the picture?", _yes(len(shown) == len(n.kinds)), ("image", "text"), "list, all shown?"
        )
    if len(shown) != 1:
        return None
    text = rng.choice(("Which thing on the list is in the picture?", "Which of the things on the list does the picture show?"))
    return Question(text, shown[0], ("image", "text"), "written list")


def ask_heard_and_read(rng: random.Random, c: Context) -> Question | None:
    u, n = c.utterance, c.note
    assert u and n
    both = ("audio", "text")
    if n.topic == "list":
        if (named := _spoken_thing(c)) is None:
            return None
        return Question(f"Is {rng.choice(_NAMED)} on the list?", _yes(named[1] in n.kinds), both, "named, listed?")
    if u.topic == "person":
        if u.people[0] not in n.people:
            return Question("What does the named person have?", NOT_WRITTEN, (), "named person") if rng.random() < 0.4 else None
        i = n.people.index(u.people[0])
        thing = f"{n.colours[i]} {n.kinds[i]}" if n.colours else n.kinds[i]
        text = rng.choice(("What does the named person have?", "What does the person the speaker names have?"))
        return Question(text, thing, both, "named person")
    if (named := _spoken_thing(c)) is None or named[1] not in n.kinds:
        return None
    i = n.kinds.index(named[1])
    if n.colours and named[0] and n.colours[i] != named[0]:
        return None
    return Question(f"Who has {rng.choice(_NAMED)}?", n.people[i], both, "named, whose")


# --- questions that join all three ---------------------------------------------------------------------------------

_PERSON = ("the named person", "the person the speaker names")


def ask_named_persons_thing(rng: random.Random, c: Context) -> Question | None:
    u, n = c.utterance, c.note
    assert u and n
    if u.topic != "person" or n.topic != "has" or u.people[0] not in n.people:
        return None
    i = n.people.index(u.people[0])
    found = _find(c, n.kinds[i], n.colours[i] if n.colours else "")
    thing = f"the thing that {rng.choice(_PERSON)} has"
    choice = rng.random()
    if choice < 0.3:
        form = rng.choice(("Is {} in the picture?", "Does the picture show {}?"))
        return Question(form.format(thing), _yes(bool(found)), SENSES, "three: shown?")
    if len(found) != 1:
        return Question(f"Where is {thing}?", NOT_SHOWN, (), "three: where") if not found and rng.random() < 0.3 else None
    if choice < 0.5 and not n.colours:
        return Question(f"What color is {thing}?", found[0].colour, SENSES, "three: colour")
    if choice < 0.6:
        return Question(f"What size is {thing}?", found[0].size, SENSES, "three: size")
    return Question(f"Where is {thing}?", found[0].place, SENSES, "three: where")


def ask_listed_named_shown(rng: random.Random, c: Context) -> Question | None:
    u, n = c.utterance, c.note
    assert u and n
    if n.topic != "list":
        return None
    if u.topic == "thing" and not u.colours:
        truth = u.kinds[0] in n.kinds and bool(_find(c, u.kinds[0]))
        text = f"Is {rng.choice(_NAMED)} on the list and in the picture?"
        return Question(text, _yes(truth), SENSES, "three: listed and shown?")
    if u.topic == "list":
        common = [kind for kind in u.kinds if kind in n.kinds and _find(c, kind)]
        if len(common) == 1:
            return Question("Which named thing is on the list and in the picture?", common[0], SENSES, "three: common")
    return None


def ask_missing_sense(rng: random.Random, c: Context) -> Question | None:
    """About a sense that was not given at all."""
    missing = [sense for sense in SENSES if sense not in c.senses]
    if not missing:
        return None
    sense = rng.choice(missing)
    text = {
        "image": rng.choice(("What is in the picture?", "Where is the cup in the picture?", "What color is the star in the picture?")),
        "audio": rng.choice(("What does the speaker say?", "Which thing does the speaker name?", "Who does the speaker name?")),
        "text": rng.choice(("What is first on the list?", "What does the text say?", "What is on the list?")),
    }[sense]
    return Question(text, NOT_GIVEN[sense], (), "missing sense")


Ask = Callable[[random.Random, Context], Question | None]
QUESTIONS: dict[tuple[str, ...], dict[Ask, float]] = {
    ("image",): {ask_colour: 2, ask_place: 2, ask_where: 2, ask_count: 2, ask_exists: 1.5, ask_relation: 2.5, ask_size: 1, ask_drawn: 2},
    ("audio",): {ask_transcript: 2, ask_named: 2, ask_mentions: 1, ask_spoken_fact: 3},
    ("text",): {ask_written_fact: 2, ask_listed: 2},
    ("image", "audio"): {ask_seen_named: 4, ask_spoken_number: 3, ask_spoken_list: 3},
    ("image", "text"): {ask_owner: 3, ask_written_list: 2},
    ("audio", "text"): {ask_heard_and_read: 1},
    ("image", "audio", "text"): {ask_named_persons_thing: 3, ask_listed_named_shown: 2},
}


def ask_any(rng: random.Random, context: Context, senses: tuple[str, ...]) -> Question | None:
    """One question of the group that needs exactly `senses` (or is unanswerable), or None when none fits."""
    group = QUESTIONS[senses]
    for _ in range(6):
        ask = rng.choices(list(group), list(group.values()))[0]
        if question := ask(rng, context):
            return question
    return None


def ask_many(rng: random.Random, context: Context, count: int) -> list[Question]:
    """Up to `count` different questions about a context, groups drawn evenly among those the context can serve."""
    groups = [group for group in QUESTIONS if set(group) <= set(context.senses)]
    weights = [(1, 2.5, 20)[len(group) - 1] for group in groups]  # joining is harder, so it is asked more often
    found: dict[str, Question] = {}
    for _ in range(4 * count):
        if len(found) == count:
            break
        if rng.random() < 0.04:
            question = ask_missing_sense(rng, context)
        else:
            question = ask_any(rng, context, rng.choices(groups, weights)[0])
        if question:
            found.setdefault(question.text, question)
    return list(found.values())
