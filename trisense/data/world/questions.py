"""Questions about the small world, with answers that are known because the facts are.

`QUESTIONS` groups them by the senses that their answers need; `ask_any` and `ask_many` draw from it. A question whose
answer is in no sense says so in its answer, and its `senses` are empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from trisense.data.world.contexts import SENSES, Context
from trisense.data.world.joined import (
    ask_heard_and_read,
    ask_listed_named_shown,
    ask_named_persons_thing,
    ask_owner,
    ask_seen_named,
    ask_spoken_list,
    ask_spoken_number,
    ask_written_list,
)
from trisense.data.world.single import (
    Question,
    ask_all,
    ask_colour,
    ask_count,
    ask_drawn,
    ask_exists,
    ask_listed,
    ask_mentions,
    ask_named,
    ask_place,
    ask_relation,
    ask_size,
    ask_spoken_fact,
    ask_transcript,
    ask_where,
    ask_written_fact,
)

NOT_GIVEN = {"image": "There is no picture.", "audio": "There is no sound.", "text": "There is no text."}


def ask_missing_sense(rng: random.Random, c: Context) -> Question | None:
    """About a sense that was not given at all."""
    missing = [sense for sense in SENSES if sense not in c.senses]
    if not missing:
        return None
    sense = rng.choice(missing)
    text = {
        "image": rng.choice(
            ("What is in the picture?", "Where is the cup in the picture?", "What color is the star in the picture?")
        ),
        "audio": rng.choice(
            ("What does the speaker say?", "Which thing does the speaker name?", "Who does the speaker name?")
        ),
        "text": rng.choice(("What is first on the list?", "What does the text say?", "What is on the list?")),
    }[sense]
    return Question(text, NOT_GIVEN[sense], (), "missing sense")


Ask = Callable[[random.Random, Context], Question | None]
QUESTIONS: dict[tuple[str, ...], dict[Ask, float]] = {
    ("image",): {
        ask_all: 1.5,
        ask_colour: 2,
        ask_place: 2,
        ask_where: 2,
        ask_count: 2,
        ask_exists: 1.5,
        ask_relation: 2.5,
        ask_size: 1,
        ask_drawn: 2,
    },
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
