"""Questions that join two senses or all three: small functions that return a `Question`, or None.

Where one thing must be found before another, the answer begins with that step (`Ben has the blue fish: bottom right`):
a small model that has written it down can build on it, and whoever reads it sees what was heard, seen or read
(scratchpads, Nye et al. 2021, arXiv:2112.00114).
"""

from __future__ import annotations

import random

from trisense.data.world.contexts import SENSES, Context
from trisense.data.world.facts import NUMBERS, Note
from trisense.data.world.single import NOT_SHOWN, NOT_WRITTEN, Question, call, find, related, things_of, yes_no

# --- questions that join two senses --------------------------------------------------------------------------------

_NAMED = ("the thing the speaker names", "the thing that is named", "the named thing")


def _spoken_thing(c: Context) -> tuple[str, str] | None:
    """(colour or '', kind) when the voice names exactly one thing."""
    u = c.utterance
    return (u.colours[0] if u.colours else "", u.kinds[0]) if u and u.topic == "thing" else None


def _owned(note: Note, i: int) -> str:
    """What the note says that its person number i has: `blue fish`, or `fish`."""
    return f"{note.colours[i]} {note.kinds[i]}" if note.colours else note.kinds[i]


def ask_seen_named(rng: random.Random, c: Context) -> Question | None:
    if (named := _spoken_thing(c)) is None:
        return None
    colour, kind = named
    found = find(c, kind, colour)
    thing = rng.choice(_NAMED)
    both = ("image", "audio")
    choice = rng.random()
    if choice < 0.25:
        form = rng.choice(("Is {} in the picture?", "Does the picture show {}?"))
        return Question(form.format(thing), yes_no(bool(found)), both, "named, shown?")
    if len(found) > 1:
        return None
    if not found:
        form = (
            rng.choice(("Where is {}?", "What size is {}?"))
            if colour
            else rng.choice(("Where is {}?", "What color is {}?"))
        )
        return Question(form.format(thing), NOT_SHOWN, (), "named, where") if rng.random() < 0.4 else None
    if choice < 0.5 and not colour:
        return Question(f"What color is {thing}?", found[0].colour, both, "named, colour")
    if choice < 0.75:
        return Question(f"Where is {thing}?", found[0].place, both, "named, where")
    if choice < 0.8:
        return Question(f"What size is {thing}?", found[0].size, both, "named, size")
    others = [other for other in things_of(c) if other != found[0]]
    if not others:
        return None
    other = rng.choice(others)
    if (relation := related(rng, found[0], other)) is None:
        return None
    text = f"Is {thing} {relation[0]} the {call(rng, c, other)}?"
    return Question(text, yes_no(relation[1]), both, "named, relation")


def ask_spoken_number(rng: random.Random, c: Context) -> Question | None:
    assert c.scene and c.utterance
    drawn = [thing for thing in c.scene.things if thing.kind == "number"]
    if c.utterance.topic != "number" or not drawn:
        return None
    text = rng.choice(
        ("Is the number the speaker says in the picture?", "Does the picture show the number that is said?")
    )
    return Question(
        text, yes_no(NUMBERS[int(drawn[0].text)] == c.utterance.number), ("image", "audio"), "number, shown?"
    )


def ask_spoken_list(rng: random.Random, c: Context) -> Question | None:
    assert c.utterance
    if c.utterance.topic != "list":
        return None
    shown = [kind for kind in c.utterance.kinds if find(c, kind)]
    if len(shown) != 1:
        return None
    text = rng.choice(
        ("Which of the things the speaker names is in the picture?", "Which named thing does the picture show?")
    )
    return Question(text, shown[0], ("image", "audio"), "spoken list")


def ask_owner(rng: random.Random, c: Context) -> Question | None:
    """Picture and note: where somebody's thing is, whether it is shown, who owns what is at a place."""
    n = c.note
    assert n
    if n.topic != "has":
        return None
    i = rng.randrange(len(n.people))
    person, found = n.people[i], find(c, n.kinds[i], n.colours[i] if n.colours else "")
    both, has = ("image", "text"), f"{person} has the {_owned(n, i)}"
    choice = rng.random()
    if choice < 0.3:
        text = rng.choice(
            (f"Is the thing that {person} has in the picture?", f"Does the picture show what {person} has?")
        )
        return Question(text, f"{has}: {yes_no(bool(found))}", both, "owned, shown?", has)
    if len(found) != 1:
        return None
    if choice < 0.6:
        text = f"Where is the thing that {person} has?"
        return Question(text, f"{has}: {found[0].place}", both, "owned, where", has)
    if choice < 0.75 and not n.colours:
        text = f"What color is the thing that {person} has?"
        return Question(text, f"{has}: {found[0].colour}", both, "owned, colour", has)
    there = f"The {found[0].name} is there"
    text = f"Who has the thing at the {found[0].place}?"
    return Question(text, f"{there}: {person}", both, "owner at a place", there)


def ask_written_list(rng: random.Random, c: Context) -> Question | None:
    n = c.note
    assert n
    if n.topic != "list":
        return None
    shown = [kind for kind in n.kinds if find(c, kind)]
    if rng.random() < 0.4:
        return Question(
            "Is everything on the list in the picture?",
            yes_no(len(shown) == len(n.kinds)),
            ("image", "text"),
            "list, all shown?",
        )
    if len(shown) != 1:
        return None
    text = rng.choice(
        ("Which thing on the list is in the picture?", "Which of the things on the list does the picture show?")
    )
    return Question(text, shown[0], ("image", "text"), "written list")


def ask_heard_and_read(rng: random.Random, c: Context) -> Question | None:
    u, n = c.utterance, c.note
    assert u and n
    both = ("audio", "text")
    if n.topic == "list":
        if (named := _spoken_thing(c)) is None:
            return None
        return Question(f"Is {rng.choice(_NAMED)} on the list?", yes_no(named[1] in n.kinds), both, "named, listed?")
    if u.topic == "person":
        if u.people[0] not in n.people:
            return (
                Question("What does the named person have?", NOT_WRITTEN, (), "named person")
                if rng.random() < 0.4
                else None
            )
        text = rng.choice(("What does the named person have?", "What does the person the speaker names have?"))
        return Question(text, _owned(n, n.people.index(u.people[0])), both, "named person")
    if (named := _spoken_thing(c)) is None or named[1] not in n.kinds:
        return None
    i = n.kinds.index(named[1])
    if n.colours and named[0] and n.colours[i] != named[0]:
        return None
    names = f"The speaker names the {' '.join(named).strip()}"
    return Question(f"Who has {rng.choice(_NAMED)}?", f"{names}: {n.people[i]}", both, "named, whose", names)


# --- questions that join all three ---------------------------------------------------------------------------------

_PERSON = ("the named person", "the person the speaker names")


def ask_named_persons_thing(rng: random.Random, c: Context) -> Question | None:
    """Voice to note to picture."""
    u, n = c.utterance, c.note
    assert u and n
    if u.topic != "person" or n.topic != "has" or u.people[0] not in n.people:
        return None
    i = n.people.index(u.people[0])
    found = find(c, n.kinds[i], n.colours[i] if n.colours else "")
    has = f"{u.people[0]} has the {_owned(n, i)}"
    thing = f"the thing that {rng.choice(_PERSON)} has"
    choice = rng.random()
    if choice < 0.3:
        form = rng.choice(("Is {} in the picture?", "Does the picture show {}?"))
        return Question(form.format(thing), f"{has}: {yes_no(bool(found))}", SENSES, "three: shown?", has)
    if len(found) != 1:
        if found or rng.random() > 0.3:
            return None
        return Question(f"Where is {thing}?", f"{has}. {NOT_SHOWN}", (), "three: where", has)
    if choice < 0.5 and not n.colours:
        return Question(f"What color is {thing}?", f"{has}: {found[0].colour}", SENSES, "three: colour", has)
    if choice < 0.6:
        return Question(f"What size is {thing}?", f"{has}: {found[0].size}", SENSES, "three: size", has)
    return Question(f"Where is {thing}?", f"{has}: {found[0].place}", SENSES, "three: where", has)


def ask_listed_named_shown(rng: random.Random, c: Context) -> Question | None:
    u, n = c.utterance, c.note
    assert u and n
    if n.topic != "list":
        return None
    if u.topic == "thing" and not u.colours:
        truth = u.kinds[0] in n.kinds and bool(find(c, u.kinds[0]))
        text = f"Is {rng.choice(_NAMED)} on the list and in the picture?"
        return Question(text, yes_no(truth), SENSES, "three: listed and shown?")
    if u.topic == "list":
        common = [kind for kind in u.kinds if kind in n.kinds and find(c, kind)]
        if len(common) == 1:
            return Question("Which named thing is on the list and in the picture?", common[0], SENSES, "three: common")
    return None
