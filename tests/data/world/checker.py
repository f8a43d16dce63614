"""Answers questions about the small world by naive logic, from what is seen, heard and read, not from how it was made.

The voice's words and the note's sentences are parsed again; nothing of the modules that ask questions is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trisense.data.world.facts import Scene, Thing

COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "gray"]
KINDS = [
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "cross",
    "ring",
    "cup",
    "house",
    "tree",
    "car",
    "fish",
    "key",
    "book",
    "flower",
    "boat",
    "hat",
]
PEOPLE = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
REFUSALS = {
    "image": ("There is no picture.", "The picture does not show that."),
    "audio": ("There is no sound.", "The speaker does not say that."),
    "text": ("There is no text.", "The text does not say that."),
}
LACKS = {sense: lacks for sense, (_, lacks) in REFUSALS.items()}


class Absent(Exception):
    """The question looks at a sense that is not there."""


@dataclass
class Fact:
    """What a voice said or a note reads: owners as (person, colour or '', kind), or what is listed or named."""

    owners: list[tuple[str, str, str]] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    thing: tuple[str, str] | None = None
    number: str = ""
    person: str = ""

    @property
    def kinds(self) -> list[str]:
        return self.listed or [kind for _, _, kind in self.owners] or ([self.thing[1]] if self.thing else [])


def listen(words: str) -> Fact:
    """Parses a transcript."""
    if owner := _owner(words):
        return Fact(owners=[owner])
    rest = [word for word in words.split() if word not in ("the", "a", "number", "it", "this", "is")]
    if "and" in rest:
        return Fact(listed=[word for word in rest if word != "and"])
    if rest[0] in NUMBERS:
        return Fact(number=rest[0])
    if rest[0].capitalize() in PEOPLE:
        return Fact(person=rest[0].capitalize())
    return Fact(thing=(rest[0] if len(rest) == 2 else "", rest[-1]))


def read(text: str) -> Fact:
    """Parses a note."""
    if found := re.fullmatch(r"(?:List|To buy|Please bring): (.*)\.", text):
        return Fact(listed=found[1].split(", "))
    owners = [_owner(sentence) for sentence in text.rstrip(".").split(". ")]
    return Fact(owners=[owner for owner in owners if owner])


def pairs(scene: Scene | None, words: str, text: str) -> set[tuple[str, str]]:
    """Every colour and kind that are shown, said or written as one thing."""
    found = {(thing.colour, thing.kind) for thing in scene.things} if scene else set()
    together = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(KINDS)})\b")
    return found | set(together.findall(words)) | set(together.findall(text))


def _owner(sentence: str) -> tuple[str, str, str] | None:
    has = re.fullmatch(r"(\w+) has (?:the|a) (?:(\w+) )?(\w+)", sentence)
    belongs = re.fullmatch(r"[Tt]he (?:(\w+) )?(\w+) belongs to (\w+)", sentence)
    if has:
        return has[1].capitalize(), has[2] or "", has[3]
    return (belongs[3].capitalize(), belongs[1] or "", belongs[2]) if belongs else None


@dataclass
class Checker:
    """One context; `solve` gives the answer, and `used` then says which senses it had to look at."""

    scene: Scene | None = None
    words: str = ""
    text: str = ""
    used: set[str] = field(default_factory=set)

    def solve(self, question: str) -> str:
        """Raises Absent, naming the sense, when the question is about one that is missing."""
        self.used = set()
        for pattern, answer in _RULES:
            if found := pattern.fullmatch(question):
                short = answer(self, *found.groups())
                step = self.step(question)
                return f"{step}{'.' if short in LACKS.values() else ':'} {short}" if step else short
        raise AssertionError(f"no rule for {question!r}")

    def step(self, question: str) -> str:
        """What must be found first: what somebody has, what stands at a place, or what is named; '' where nothing."""
        if found := re.search(rf"(?:the thing that|what) (?:{_PERSON}|([A-Z]\w+)) has", question):
            person = found[1] or self.hear().person
            return f"{person} has the {self.property_of(person)}"
        if found := re.search(rf"Who has the thing at the {_PLACE}", question):
            return f"The {_at(self, found[1])} is there"
        if re.search(rf"Who has {_NAMED}", question):
            return f"The speaker names the {' '.join(self.hear().thing or ()).strip()}"
        return ""

    def see(self) -> list[Thing]:
        self.used.add("image")
        if self.scene is None:
            raise Absent("image")
        return list(self.scene.things)

    def hear(self) -> Fact:
        self.used.add("audio")
        if not self.words:
            raise Absent("audio")
        return listen(self.words)

    def note(self) -> Fact:
        self.used.add("text")
        if not self.text:
            raise Absent("text")
        return read(self.text)

    # --- what a phrase means -----------------------------------------------------------------------------------

    def shown(self, name: str) -> list[Thing]:
        *colour, kind = name.split()
        return [t for t in self.see() if t.kind == kind and t.colour in (colour or COLOURS)]

    def meant(self, phrase: str) -> list[Thing]:
        """The things of the picture that a phrase may mean: by name, as named, or as somebody's."""
        if "speaker names has" in phrase or "named person has" in phrase:
            return self.shown(self.property_of(self.hear().person))
        if found := re.fullmatch(r"(?:the thing that|what) (\w+) has", phrase):
            return self.shown(self.property_of(found[1]))
        if phrase in ("the thing the speaker names", "the thing that is named", "the named thing"):
            thing = self.hear().thing
            assert thing
            return self.shown(" ".join(thing).strip())
        return self.shown(phrase.removeprefix("the "))

    def property_of(self, person: str) -> str:
        """`red cup` or `cup`; '' when the note does not know the person."""
        return next((f"{colour} {kind}".strip() for owner, colour, kind in self.note().owners if owner == person), "")

    def attribute(self, phrase: str, name: str) -> str:
        things = self.meant(phrase)
        if not things:
            return LACKS["image"]
        assert len(things) == 1, f"{phrase} may be any of {things}"
        return str({"place": place(things[0]), "colour": things[0].colour, "size": things[0].size}[name])


def place(thing: Thing) -> str:
    """From the coordinates of the centre."""
    x, y = thing.centre
    column, row = ("left", "center", "right")[int(3 * x)], ("top", "middle", "bottom")[int(3 * y)]
    return "center" if (row, column) == ("middle", "center") else f"{row} {column}"


def _truth(value: object) -> str:
    return "yes" if value else "no"


def _singular(plural: str) -> str:
    return plural if plural == "fish" else "cross" if plural == "crosses" else plural.removesuffix("s")


def _at(c: Checker, where: str) -> str:
    there = [thing for thing in c.see() if place(thing) == where]
    assert len(there) < 2
    return _name(there[0]) if there else "nothing"


def _all(c: Checker) -> str:
    """From the top down, each row from the left: by thirds of the picture."""
    return ", ".join(map(_name, sorted(c.see(), key=lambda t: (int(3 * t.centre[1]), int(3 * t.centre[0])))))


def _name(thing: Thing) -> str:
    if thing.kind in KINDS:
        return f"{thing.colour} {thing.kind}"
    return f"the number {NUMBERS[int(thing.text)]}" if thing.kind == "number" else f"the word {thing.text}"


def _relation(c: Checker, a: str, side: str, b: str) -> str:
    (one,), (other,) = c.meant(a), c.meant(b)
    (ax, ay), (bx, by) = one.centre, other.centre
    return _truth({"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}[side])


def _drawn(c: Checker, kind: str) -> str:
    texts = [thing.text for thing in c.see() if thing.kind == kind]
    if not texts:
        return LACKS["image"]
    return NUMBERS[int(texts[0])] if kind == "number" else texts[0]


def _said(c: Checker, what: str) -> str:
    fact = c.hear()
    colours = [colour for colour in [fact.thing[0] if fact.thing else "", *(o[1] for o in fact.owners)] if colour]
    known = {
        "Which thing": fact.kinds,
        "Which color": colours,
        "Which number": [fact.number] if fact.number else [],
        "Who": [fact.person] if fact.person else [owner for owner, _, _ in fact.owners],
    }[what]
    assert len(known) < 2
    return known[0] if known else LACKS["audio"]


def _has(fact: Fact, lacks: str, person: str) -> str:
    return next((f"{colour} {kind}".strip() for owner, colour, kind in fact.owners if owner == person), lacks)


def _who(fact: Fact, name: str, lacks: str) -> str:
    *colour, kind = name.split()
    owners = [owner for owner, c, k in fact.owners if k == kind and (not c or c in (colour or COLOURS))]
    assert len(owners) < 2
    return owners[0] if owners else lacks


def _owner_at(c: Checker, where: str) -> str:
    (thing,) = (thing for thing in c.see() if place(thing) == where)
    return _who(c.note(), f"{thing.colour} {thing.kind}", LACKS["text"])


def _one(found: list[str]) -> str:
    assert len(found) == 1
    return found[0]


def _all_three(c: Checker) -> str:
    fact, listed, shown = c.hear(), c.note().listed, c.see()
    assert fact.thing
    return _truth(fact.thing[1] in listed and any(thing.kind == fact.thing[1] for thing in shown))


def _number_shown(c: Checker) -> str:
    return _truth(c.hear().number in [NUMBERS[int(thing.text)] for thing in c.see() if thing.kind == "number"])


def _only_shown(c: Checker, kinds: list[str]) -> str:
    return _one([kind for kind in kinds if c.shown(kind)])


def _common(c: Checker) -> str:
    kinds, listed = c.hear().kinds, c.note().listed
    return _one([kind for kind in kinds if kind in listed and c.shown(kind)])


_PLACE = r"(center|(?:top|middle|bottom) (?:left|center|right))"
_NAME = r"((?:\w+ )?\w+)"
_NAMED = r"(?:the thing the speaker names|the thing that is named|the named thing)"
_PERSON = r"(?:the named person|the person the speaker names)"
_PHRASE = rf"({_NAMED}|the thing that (?:\w+|{_PERSON}) has|the (?:\w+ )?\w+)"
_RULES = [
    (re.compile(pattern), answer)
    for pattern, answer in {
        # about a sense as a whole, most of them asked only when it is missing
        r"(?:What is in the picture\?|Name the things in the picture\.|Describe the picture\.)": _all,
        r"(?:What does the text say|What is on the list)\?": lambda c: str(c.note()),
        r"(?:Where|What color) is the (\w+) in the picture\?": lambda c, name: str(c.shown(name)),
        # the picture
        rf"(?:What is at|What is in|Which thing is at) the {_PLACE}\?": _at,
        r"Which color does the (\w+) have\?": lambda c, name: c.attribute(name, "colour"),
        r"What is the color of the (\w+)\?": lambda c, name: c.attribute(name, "colour"),
        rf"Where in the picture is the {_NAME}\?": lambda c, name: c.attribute(name, "place"),
        r"How many things are in the picture\?": lambda c: NUMBERS[len(c.see())],
        r"How many (\w+) things are there\?": lambda c, colour: NUMBERS[sum(t.colour == colour for t in c.see())],
        r"How many (\w+) are there\?": lambda c, kinds: NUMBERS[len(c.shown(_singular(kinds)))],
        rf"Is there a {_NAME}\?": lambda c, name: _truth(c.shown(name)),
        rf"Does the picture show a {_NAME}\?": lambda c, name: _truth(c.shown(name)),
        rf"Is a {_NAME} in the picture\?": lambda c, name: _truth(c.shown(name)),
        rf"Is the {_NAME} small or large\?": lambda c, name: c.attribute(name, "size"),
        r"(?:What|Which) (number|word) (?:is in the picture|does the picture show)\?": _drawn,
        # the voice
        r"(?:What does the speaker say\?|What is said\?|Write down what the speaker says\.)": lambda c: (
            c.hear() and c.words
        ),
        r"(Which thing|Which color|Which number|Who) does the speaker (?:name|say)\?": _said,
        r"Does the speaker (?:name|talk about) a (\w+)\?": lambda c, kind: _truth(kind in c.hear().kinds),
        r"According to the speaker, who has the (\w+)\?": lambda c, kind: _who(c.hear(), kind, LACKS["audio"]),
        r"According to the speaker, what does (\w+) have\?": lambda c, person: _has(c.hear(), LACKS["audio"], person),
        r"According to the speaker, what color is the (\w+)\?": lambda c, kind: _one(
            [colour for _, colour, k in c.hear().owners if k == kind]
        ),
        # the note
        r"(?:Who has|Whose is) the (\w+)\?": lambda c, kind: _who(c.note(), kind, LACKS["text"]),
        r"What does ([A-Z]\w+) have\?": lambda c, person: _has(c.note(), LACKS["text"], person),
        r"What color is the (\w+) of ([A-Z]\w+)\?": lambda c, kind, person: _one(
            [colour for owner, colour, k in c.note().owners if (owner, k) == (person, kind)]
        ),
        r"Is a (\w+) on the list\?": lambda c, kind: _truth(kind in c.note().listed),
        r"What is first on the list\?": lambda c: c.note().listed[0],
        r"What is last on the list\?": lambda c: c.note().listed[-1],
        r"How many things are on the list\?": lambda c: NUMBERS[len(c.note().listed)],
        # joined
        r"Is the number the speaker says in the picture\?": _number_shown,
        r"Does the picture show the number that is said\?": _number_shown,
        r"Which of the things the speaker names is in the picture\?": lambda c: _only_shown(c, c.hear().kinds),
        r"Which named thing does the picture show\?": lambda c: _only_shown(c, c.hear().kinds),
        r"Is everything on the list in the picture\?": lambda c: _truth(all(c.shown(kind) for kind in c.note().listed)),
        r"Which thing on the list is in the picture\?": lambda c: _only_shown(c, c.note().listed),
        r"Which of the things on the list does the picture show\?": lambda c: _only_shown(c, c.note().listed),
        rf"Who has the thing at the {_PLACE}\?": _owner_at,
        rf"Is {_NAMED} on the list\?": lambda c: _truth(c.hear().kinds[0] in c.note().listed),
        rf"Who has {_NAMED}\?": lambda c: _who(c.note(), " ".join(c.hear().thing or ()).strip(), LACKS["text"]),
        rf"What does {_PERSON} have\?": lambda c: _has(c.note(), LACKS["text"], c.hear().person),
        rf"Is {_NAMED} on the list and in the picture\?": _all_three,
        r"Which named thing is on the list and in the picture\?": _common,
        # a phrase for a thing, by any of the senses
        rf"Is {_PHRASE} in the picture\?": lambda c, phrase: _truth(c.meant(phrase)),
        r"Does the picture show (what \w+ has)\?": lambda c, phrase: _truth(c.meant(phrase)),
        rf"Does the picture show {_PHRASE}\?": lambda c, phrase: _truth(c.meant(phrase)),
        rf"Where is {_PHRASE}\?": lambda c, phrase: c.attribute(phrase, "place"),
        rf"What color is {_PHRASE}\?": lambda c, phrase: c.attribute(phrase, "colour"),
        rf"What size is {_PHRASE}\?": lambda c, phrase: c.attribute(phrase, "size"),
        rf"Is {_PHRASE} (left of|right of|above|below) {_PHRASE}\?": _relation,
    }.items()
]
