"""Tasks whose answer joins real pictures, sounds and texts, or lies in none of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trisense.data.real.bank import I_SEE, IS_THIS, THIS_IS, a, name_of, named_pictures
from trisense.data.real.pack import Pack, Ref, Split
from trisense.data.real.sample import Given, Spoken
from trisense.data.real.tasks import NAME, SAY, SINGLE, Asked, Task, in_words, phrase
from trisense.data.world.questions import NOT_GIVEN
from trisense.data.world.single import NOT_SAID, NOT_SHOWN, NOT_WRITTEN, yes_no

# Names of so many words at most are spoken and written about.
SHORT = 3


@dataclass(frozen=True)
class Shown:
    """A picture with its name, and names of others to confuse it with. They are of its own file: who can tell a shop
    photograph from an emoji would know most answers otherwise."""

    picture: Ref
    name: str
    others: Sequence[str]

    def other(self, rng: random.Random) -> str:
        """A name that is not its own, nor a part of it."""
        while True:
            name = rng.choice(self.others)
            if name not in self.name and self.name not in name:
                return name


def shown(pack: Pack, split: Split) -> list[Shown]:
    """Pictures with short names, of files that have more than two."""
    pictures = [(ref, name) for ref, name in named_pictures(pack, split) if len(name.split()) <= SHORT]
    files = {
        file: sorted({name for ref, name in pictures if ref.file == file}) for file in {r.file for r, _ in pictures}
    }
    return [Shown(ref, name, files[ref.file]) for ref, name in pictures if len(files[ref.file]) > 2]


def said(rng: random.Random, words: str) -> Spoken:
    """The words, in a voice, a room and noise drawn by chance."""
    return Spoken("".join(c for c in words.lower() if c.isalnum() or c in " '").strip(), rng.getrandbits(32))


ANSWER = ("Answer the spoken question.", "What is the answer to what is asked?")


def _spoken_question(rng: random.Random, one: Shown) -> Asked:
    """What is asked about the picture has to be heard."""
    asked = phrase(rng, ANSWER)
    if rng.random() < 0.4:
        return Asked((one.picture, said(rng, rng.choice(NAME))), asked, one.name)
    truth = rng.random() < 0.5
    name = one.name if truth else one.other(rng)
    return Asked((one.picture, said(rng, f"{IS_THIS} {a(name)}")), asked, yes_no(truth))


def _spoken_shape(rng: random.Random, subject: tuple[Ref, str, str]) -> Asked:
    """A question of easy-VQA, spoken."""
    ref, question, answer = subject
    return Asked((ref, said(rng, question)), phrase(rng, ANSWER), answer)


def _spoken_statement(rng: random.Random, subject: tuple[Ref, str, str]) -> Asked:
    """A statement of NLVR, spoken."""
    ref, text, answer = subject
    asked = phrase(rng, ("Is what the speaker says true?", "Is the speaker right about the picture?"))
    return Asked((ref, said(rng, text)), asked, answer, ("true" if answer == "yes" else "false",))


def _spoken_list(rng: random.Random, one: Shown) -> Asked:
    names = [one.name, one.other(rng), one.other(rng)]
    rng.shuffle(names)
    asked = phrase(
        rng, ("Which of the named things does the picture show?", "What of the spoken list is in the picture?")
    )
    return Asked((one.picture, said(rng, f"{names[0]} {names[1]} or {names[2]}")), asked, one.name)


def _disagree(rng: random.Random, one: Shown) -> Asked:
    """Picture and speech: the same thing, or two, and then both are to be named."""
    asked = phrase(rng, ("Do the picture and the speaker agree?", "Is that what the picture shows?"))
    if rng.random() < 0.3:
        return Asked((one.picture, said(rng, f"{THIS_IS} {a(one.name)}")), asked, f"yes: {one.name}")
    name = one.other(rng)
    answer = f"no: the picture shows {one.name}, the speaker says {name}"
    return Asked((one.picture, said(rng, f"{THIS_IS} {a(name)}")), asked, answer, (one.name, name))


def _contradicted(rng: random.Random, one: Shown) -> Asked:
    """The same of a text."""
    asked = phrase(rng, ("Is the text right about the picture?", "Do the picture and the text agree?"))
    if rng.random() < 0.4:
        return Asked((one.picture, f"The picture shows {a(one.name)}."), asked, f"yes: {one.name}")
    name = one.other(rng)
    answer = f"no: the picture shows {one.name}, the text says {name}"
    return Asked((one.picture, f"The picture shows {a(name)}."), asked, answer, (one.name, name))


PLACES = ("in the picture", "in the sound", "in the text")


def _one_sense(rng: random.Random, one: Shown) -> Asked:
    """Three things in three senses: where is one of them?"""
    spoken, written = one.other(rng), one.other(rng)
    name, place = rng.choice(list(zip((one.name, spoken, written), PLACES, strict=True)))
    if spoken == written:
        name, place = one.name, PLACES[0]
    given = (one.picture, said(rng, f"{I_SEE} {a(spoken)}"), f"There is {a(written)}.")
    return Asked(given, phrase(rng, (f"Where is the {name}: {', '.join(PLACES[:2])} or {PLACES[2]}?",)), place)


def _three_senses(rng: random.Random, one: Shown) -> Asked:
    """The same fact in all three."""
    given = (one.picture, said(rng, f"{THIS_IS} {a(one.name)}"), f"The picture shows {a(one.name)}.")
    asked = phrase(rng, ("What do the picture, the speaker and the text agree on?", "What is it?"))
    return Asked(given, asked, one.name)


def _sounds_with_pictures(pack: Pack, split: Split) -> list[tuple[Ref, str, Ref, str]]:
    """Sound effects with the picture that each belongs to, and with that of another."""
    pictures = {
        row["id"]: (Ref("image", "pictures/tuxpaint", number), name)
        for number, row in pack.rows("pictures/tuxpaint", split)
        if (name := name_of(row))
    }
    own = [
        (Ref("audio", "sounds/tuxpaint_effects", number), *pictures[row["image_id"]])
        for number, row in pack.rows("sounds/tuxpaint_effects", split)
        if row["image_id"] in pictures
    ]
    found = []
    for place, (sound, picture, name) in enumerate(own):
        found.append((sound, picture, name, True))
        _, other, called = own[(place + len(own) // 2) % len(own)]
        if called != name:
            found.append((sound, other, name, False))
    return found


def _belongs(rng: random.Random, subject: tuple[Ref, Ref, str, bool]) -> Asked:
    sound, picture, _, same = subject
    asked = phrase(rng, ("Does the sound belong to the picture?", "Does what you see make this sound?"))
    return Asked((picture, sound), asked, yes_no(same))


ABSENT: dict[str, tuple[str, ...]] = {"image": NAME, "audio": SAY, "text": ("What does the text say?",)}


def _absent_facts(pack: Pack, split: Split) -> list[tuple[tuple[Given, ...], str, str]]:
    """Questions about a sense that is not given, and about a passage that another question was asked about; in training
    three others, for that a text does not say it is the hardest to tell."""
    found: list[tuple[tuple[Given, ...], str, str]] = []
    others = (2, 3, 5) if split == "train" else (2,)
    passages = SINGLE["passages"].subjects(pack, split)
    pictures = [one.picture for one in shown(pack, split)]
    sounds = [ref for ref, _ in SINGLE["commands"].subjects(pack, split)]
    for number, (text, question, _) in enumerate(passages):
        asked = {passages[(number + len(passages) // other) % len(passages)][1]: None for other in others}
        found += [((text,), other, NOT_WRITTEN) for other in asked if other != question]
        if pictures and sounds:
            picture, sound = pictures[number * 7 % len(pictures)], sounds[number * 7 % len(sounds)]
            found += [((sound,), NAME[0], NOT_GIVEN["image"]), ((picture,), SAY[0], NOT_GIVEN["audio"])]
            found.append(((picture,), ABSENT["text"][0], NOT_GIVEN["text"]))
    return found


def _absent(rng: random.Random, subject: tuple[tuple[Given, ...], str, str]) -> Asked:
    return Asked(*subject)


def _not_shown(rng: random.Random, one: Shown) -> Asked:
    """A question about a thing that the picture does not show, though a voice or a text may name it."""
    name = one.other(rng)
    asked = phrase(rng, (f"What color is the {name} in the picture?", f"Where is the {name} in the picture?"))
    more = rng.choice(((), (), (said(rng, f"{I_SEE} {a(name)}"),), (f"There is {a(name)}.",)))
    return Asked((one.picture, *more), asked, NOT_SHOWN)


NUMBER_WORDS = {word for number in range(100) for word in in_words(number).split()}


def _without_numbers(pack: Pack, split: Split) -> list[Ref]:
    """Read sentences in which nobody says a number."""
    sentences = SINGLE["read sentences"].subjects(pack, split)
    return [ref for ref, words in sentences if not NUMBER_WORDS & {*words.split()}]


def _not_said(rng: random.Random, sound: Ref) -> Asked:
    return Asked((sound,), "Which number does the speaker say?", NOT_SAID)


def _given_more(task: str) -> Callable[[Pack, Split], Sequence[tuple]]:
    """The subjects of a task of one sense, each with a medium of another that has nothing to do with it."""

    def found(pack: Pack, split: Split) -> list[tuple]:
        pictures, sounds = shown(pack, split), SINGLE["read sentences"].subjects(pack, split)
        subjects = SINGLE[task].subjects(pack, split)
        if not (pictures and sounds):
            return []
        seen = task in ("name an emoji", "name a grocery")
        return [
            (one, sounds[i * 13 % len(sounds)][0] if seen else pictures[i * 13 % len(pictures)].picture)
            for i, one in enumerate(subjects)
        ]

    return found


def _with_more(task: str) -> Callable[[random.Random, tuple], Asked]:
    def ask(rng: random.Random, subject: tuple) -> Asked:
        asked = SINGLE[task].ask(rng, subject[0])
        return asked._replace(given=(*asked.given, subject[1]))

    return ask


JOINED: dict[str, Task] = {
    "spoken question about a picture": Task(shown, _spoken_question),
    "spoken list against a picture": Task(shown, _spoken_list),
    "sound and picture": Task(_sounds_with_pictures, _belongs),
    "picture and speech disagree": Task(shown, _disagree, "names"),
    "text contradicts the picture": Task(shown, _contradicted, "names"),
    "fact in one sense": Task(shown, _one_sense),
    "fact in three senses": Task(shown, _three_senses),
    "fact in no sense": Task(_absent_facts, _absent, "refuses"),
    "spoken question about a shape": Task(SINGLE["shapes"].subjects, _spoken_shape),
    "spoken statement about a scene": Task(SINGLE["statements about scenes"].subjects, _spoken_statement),
    "thing not shown": Task(shown, _not_shown, "refuses"),
    "number not said": Task(_without_numbers, _not_said, "refuses"),
    **{
        f"{alone}, and a {medium}": Task(_given_more(alone), _with_more(alone), SINGLE[alone].score, alone)
        for alone, medium in (
            ("name an emoji", "sound"),
            ("name a grocery", "sound"),
            ("spoken digits", "picture"),
            ("read sentences", "picture"),
            ("passages", "picture"),
        )
    },
}
