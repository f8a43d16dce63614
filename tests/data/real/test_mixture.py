"""Tasks over a small pack: what each asks, that answers are true, and that the same number is the same sample."""

from __future__ import annotations

import random

import pytest

from trisense.data.real.bank import named_pictures, recorded
from trisense.data.real.joined import shown
from trisense.data.real.mixture import TASKS, Mixture, weights
from trisense.data.real.pack import Pack, Ref, Split
from trisense.data.real.sample import Sample, Spoken
from trisense.data.real.tasks import SINGLE, cut, in_words, lettered, mended
from trisense.data.world.facts import Scene, Thing
from trisense.data.world.single import NOT_WRITTEN
from trisense.errors import BadInput


def one(pack: Pack, task: str) -> list[Sample]:
    return list(Mixture(pack, "train", 0).every(task))


def test_every_task_asks_something_of_this_pack(pack: Pack) -> None:
    for task in TASKS:
        samples = one(pack, task)
        assert samples, task
        for sample in samples:
            assert sample.task == task and sample.question and sample.answer, task
            assert all(
                sample.question.strip() == sample.question and len(given) > 0 for given in map(str, sample.given)
            )


def test_single_sources(pack: Pack) -> None:
    assert one(pack, "name an emoji")[0] == Sample(
        "name an emoji", (Ref("image", "pictures/noto72", 0),), "What is this?", "red apple"
    )
    digit = one(pack, "spoken digits")[1]
    assert (digit.question, digit.answer, digit.accepted) == ("Which digit is spoken?", "one", ("1",))
    among_commands = one(pack, "spoken digits, unheard speakers")
    assert [(s.answer, s.accepted) for s in among_commands] == [("zero", ("0",))], "bed, cat and happy are none"
    statement = one(pack, "statements about scenes")[1]
    assert statement.question == "Is this true? There is 1 box."
    assert (statement.answer, statement.accepted) == ("no", ("false",))
    passage = one(pack, "passages")[1]
    assert passage.given == ("In 1901 the town, it is said, was built by pear.",)
    assert (passage.question, passage.answer, passage.score) == ("Who built town 1?", "pear", "f1")
    drawn = one(pack, "name an emoji, another style")[2]
    assert drawn.answer == "dog" and drawn.given == (Ref("image", "pictures/noto72", 2, style=3),)


def test_a_passage_is_cut_around_its_answer() -> None:
    text = " ".join(f"w{i}" for i in range(300))
    found = cut(text, "w150", 40)
    assert found and "w150" in found.split() and len(found.split()) == 40
    assert cut(text, "w3", 40).split()[0] == "w0"  # pyright: ignore[reportOptionalMemberAccess]
    assert cut(text, "nowhere") is None


def test_joined_answers_are_true(pack: Pack) -> None:
    names = {
        sample.given[0]: sample.answer
        for task in ("name an emoji", "name a drawing", "name a product")
        for sample in one(pack, task)
    }
    for sample in one(pack, "picture and speech disagree"):
        picture, spoken = sample.given
        if picture not in names:
            continue
        assert isinstance(spoken, Spoken)
        said = spoken.words.removeprefix("this is ").removeprefix("an ").removeprefix("a ")
        if sample.answer.startswith("yes"):
            assert said == names[picture] == sample.answer.removeprefix("yes: ")
        else:
            assert sample.accepted == (names[picture], said) and said != names[picture]
    for sample in one(pack, "spoken list against a picture"):
        spoken = sample.given[1]
        assert isinstance(spoken, Spoken) and sample.answer in spoken.words
    for sample in one(pack, "fact in one sense"):
        name = sample.question.removeprefix("Where is the ").split(":")[0]
        picture, spoken, text = sample.given
        place = {
            "in the picture": names.get(picture, name),
            "in the sound": getattr(spoken, "words", ""),
            "in the text": text,
        }
        assert name in place[sample.answer]
    for sample in one(pack, "fact in no sense"):
        senses = {given.sense if isinstance(given, Ref) else "text" for given in sample.given}
        assert {"There is no picture.": "image", "There is no sound.": "audio"}.get(sample.answer) not in senses


def test_what_a_picture_is_confused_with_is_of_its_own_file(pack: Pack) -> None:
    names: dict[str, set[str]] = {}
    for ref, name in named_pictures(pack, "train"):
        names.setdefault(ref.file, set()).add(name)
    found = shown(pack, "train")
    assert {one.picture.file for one in found} == {"pictures/noto72", "pictures/art4apps", "pictures/tuxpaint"}, (
        "files with two names have nothing to confuse"
    )
    rng = random.Random(0)
    for one in found:
        others = {one.other(rng) for _ in range(20)}
        assert others <= names[one.picture.file] - {one.name} and len(others) > 1


def test_numbers_are_read_and_written_in_words(pack: Pack) -> None:
    assert [in_words(number) for number in (0, 7, 13, 20, 42, 99)] == [
        "zero",
        "seven",
        "thirteen",
        "twenty",
        "forty two",
        "ninety nine",
    ]
    for sample in one(pack, "drawn numbers"):
        (scene,) = sample.given
        assert isinstance(scene, Scene) and sample.accepted == (scene.things[0].text,)
        assert sample.answer == in_words(int(scene.things[0].text))


def test_words_that_dev_reads_are_none_of_training(pack: Pack) -> None:
    def drawn(split: Split) -> set[str]:
        samples = list(Mixture(pack, split, 0).every("drawn words"))
        assert all(isinstance(s.given[0], Scene) and s.given[0].things[0].text == s.answer for s in samples)
        return {sample.answer for sample in samples}

    assert {"apple", "happy"} <= drawn("train") and "yellow" in drawn("dev")
    assert not drawn("train") & drawn("dev")


def test_an_order_is_asked_by_its_details(pack: Pack) -> None:
    asked = {(sample.question, sample.answer) for sample in one(pack, "orders")}
    assert ("Which drink does the speaker order?", "iced mocha") in asked
    assert ("Which size does the speaker order?", "large") in asked


def test_what_the_source_read_wrongly_is_mended() -> None:
    assert mended("Shatner\u00e2\u20ac\u2122s film") == "Shatner\u2019s film"
    assert mended("Malm\u00f6, 30 \u00b0C") == "Malm\u00f6, 30 \u00b0C"


def test_questions_that_nothing_answers_ask_about_what_is_not_there(pack: Pack) -> None:
    names = {sample.given[0]: sample.answer for sample in one(pack, "name an emoji")}
    for sample in one(pack, "thing not shown"):
        assert names.get(sample.given[0], "nothing") not in sample.question
        assert (sample.answer, sample.score) == ("The picture does not show that.", "refuses")
    silent = {sample.given[0] for sample in one(pack, "number not said")}
    words = {sample.given[0]: sample.answer for sample in one(pack, "read sentences")}
    assert silent == {ref for ref, said in words.items() if not {"zero", "five"} & {*said.split()}} != {*words}


def test_a_text_is_asked_what_other_texts_say_more_often_in_training(pack: Pack) -> None:
    said = {sample.given[0]: sample.question for sample in one(pack, "passages")}
    asked = [(s.given[0], s.question) for s in one(pack, "fact in no sense") if s.answer == NOT_WRITTEN]
    assert all(question in said.values() and question != said[text] for text, question in asked)
    assert len({*asked}) == len(asked) == 2 * len(said)
    dev = Mixture(pack, "dev", 0)
    assert sum(s.answer == NOT_WRITTEN for s in dev.every("fact in no sense")) == len(list(dev.every("passages")))


def test_what_a_drawn_number_or_word_reads() -> None:
    def drawn(kind: str, text: str) -> Scene:
        return Scene((Thing(kind, "red", "large", 1, 1, text=text),), 5)

    assert lettered(drawn("number", "42")) == "forty two" and lettered(drawn("word", "milk")) == "milk"


def test_of_what_has_no_name_and_no_words_one_cannot_tell(pack: Pack) -> None:
    """Asked just as what has a name, or words, is asked, so that only looking and listening tell them apart."""
    splits: tuple[Split, Split] = ("train", "dev")
    named = {ref for split in splits for ref, _ in named_pictures(pack, split)}
    spoken = {ref for split in splits for ref, words in recorded(pack, split) if not words.startswith("(")}
    for task, like, known in (
        ("nothing to name", "name an emoji", named),
        ("nobody speaks", "read sentences", spoken),
    ):
        refs = {split: [s.given[0] for s in Mixture(pack, split, 0).every(task)] for split in splits}
        assert refs["train"] and refs["dev"] and not set(refs["train"]) & set(refs["dev"]), task
        assert not known & {*refs["train"], *refs["dev"]}, task
        samples, others = one(pack, task), one(pack, like)
        assert {(s.question, s.answer, s.score) for s in samples} == {(others[0].question, "I can't tell.", "refuses")}
        subject, asked = Mixture(pack, "train", 0).subjects(task)[0], SINGLE[like]
        phrasings = {SINGLE[task].ask(random.Random(n), subject).question for n in range(60)}
        other = Mixture(pack, "train", 0).subjects(like)[0]
        assert phrasings == {asked.ask(random.Random(n), other).question for n in range(60)} and len(phrasings) > 2


def test_what_is_asked_of_nothing_is_not_known(pack: Pack) -> None:
    choices = {sample.question: sample for sample in one(pack, "trivia")}
    for sample in one(pack, "nothing given"):
        assert choices[sample.question].given and not sample.given
        assert (sample.answer, sample.score) == ("I can't tell.", "refuses")


def test_a_medium_of_no_use_leaves_the_question_as_it_is(pack: Pack) -> None:
    for task, alone in ((task, TASKS[task].alone) for task in TASKS if TASKS[task].alone):
        for count in (None, 2):
            mixture = Mixture(pack, "train", 5)
            pairs = list(zip(mixture.every(alone, count), mixture.every(task, count), strict=True))
            assert pairs
            for single, more in pairs:
                assert more.given[: len(single.given)] == single.given and len(more.given) == len(single.given) + 1
                assert (more.question, more.answer, more.accepted, more.score) == (
                    single.question,
                    single.answer,
                    single.accepted,
                    single.score,
                )


def test_training_draws_by_number_and_by_weight(pack: Pack) -> None:
    mixture = Mixture(pack, "train", 3)
    samples = [mixture.sample(number) for number in range(400)]
    assert samples == [Mixture(pack, "train", 3).sample(number) for number in range(400)]
    assert samples != [Mixture(pack, "train", 4).sample(number) for number in range(400)]
    counts = {task: sum(sample.task == task for sample in samples) for task in TASKS}
    assert counts["name an emoji, another style"] == 0, "what is measured for what carries over is not trained"
    assert counts["name an emoji"] > counts["sounds"]
    assert len({sample.question for sample in samples if sample.task == "name an emoji"}) > 1, "several phrasings"
    assert set(weights()) <= set(TASKS)


def test_a_part_of_a_task_is_the_same_part_each_time(pack: Pack) -> None:
    mixture = Mixture(pack, "train", 0)
    part = list(mixture.every("name an emoji", 3))
    assert len(part) == 3 and part == list(mixture.every("name an emoji", 3))
    assert all(sample in list(mixture.every("name an emoji")) for sample in part)
    with pytest.raises(BadInput, match="no task 'name a cat'; there are: name an emoji"):
        next(mixture.every("name a cat"))
