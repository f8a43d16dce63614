"""Contexts of the small world: a picture's, a voice's and a note's facts, drawn together so that they can be joined."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
)

SENSES = ("image", "audio", "text")


@dataclass(frozen=True)
class Context:
    scene: Scene | None = None
    utterance: Utterance | None = None
    note: Note | None = None

    @property
    def senses(self) -> tuple[str, ...]:
        return tuple(s for s, fact in zip(SENSES, (self.scene, self.utterance, self.note), strict=True) if fact)


# Gives an utterance of a topic as near to a wish as it can; `make_utterance` says what may be wished.
Utter = Callable[[random.Random, Topic, dict], Utterance | None]


def pair_of(rng: random.Random, split: Split, colour: str = "", kind: str = "") -> tuple[str, str]:
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
        colour, kind = pair_of(rng, split)
        if things and rng.random() < 0.2:  # the same kind again, to be counted
            colour, kind = pair_of(rng, split, kind=rng.choice(things).kind)
        elif any(thing.kind == kind for thing in things):
            continue
        if any(thing.name == f"{colour} {kind}" for thing in things):
            continue
        shift = (rng.uniform(-0.14, 0.14), rng.uniform(-0.14, 0.14))
        things.append(Thing(kind, colour, rng.choice(SIZES), row, column, *shift))
    if rng.random() < 0.35:
        row, column = cells[count]
        kind, text = ("number", str(rng.randrange(10))) if rng.random() < 0.5 else ("word", rng.choice(SIGNS))
        things.append(
            Thing(
                kind, rng.choice(("black", "blue", "red", "green", "brown", "purple")), "large", row, column, text=text
            )
        )
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
    colour, kind = pair_of(rng, split, wish.get("colour", ""), wish.get("kind", ""))
    if topic == "has":
        person = wish.get("person") or rng.choice(PEOPLE)
        form = rng.choice(("{p} has the {c} {k}", "{p} has a {c} {k}", "the {c} {k} belongs to {p}"))
        words = form.format(p=person.lower(), c=colour, k=kind)
        return Utterance(words, topic, (colour,), (kind,), people=(person,), style=style)
    if wish.get("colour") == "" or (not wish.get("colour") and rng.random() < 0.5):
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
    people: list[str] = rng.sample(PEOPLE, count)
    if utterance and utterance.people and utterance.people[0] not in people and rng.random() < 0.8:
        people[rng.randrange(count)] = utterance.people[0]
    coloured = rng.random() < 0.6
    pairs: list[tuple[str, str]] = []
    for _ in people:
        choice = rng.random()
        if shown and choice < 0.6:
            thing = rng.choice(shown)
            pair = (thing.colour, thing.kind) if rng.random() < 0.8 else pair_of(rng, split, kind=thing.kind)
        elif named and choice < 0.8:
            pair = pair_of(rng, split, kind=rng.choice(named))
        else:
            pair = pair_of(rng, split)
        if pair[1] in [kind for _, kind in pairs]:
            pair = pair_of(rng, split, kind=rng.choice([kind for kind in KINDS if kind not in [k for _, k in pairs]]))
        pairs.append(pair)
    form = rng.choice(("{p} has the {t}.", "{p} has a {t}.", "The {t} belongs to {p}."))
    said = [form.format(p=p, t=f"{c} {k}" if coloured else k) for p, (c, k) in zip(people, pairs, strict=True)]
    colours = tuple(colour for colour, _ in pairs) if coloured else ()
    return Note(" ".join(said), "has", tuple(people), colours, tuple(kind for _, kind in pairs))


def make_context(
    rng: random.Random, split: Split, utter: Utter, senses: Iterable[str], scene: Scene | None = None
) -> Context:
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
