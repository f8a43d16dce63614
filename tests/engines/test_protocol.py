"""What engines share: the part of a prompt that need not be read again, the choice of a token, the loop."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models

from trisense.chat import Conversation
from trisense.engines.protocol import CachingEngine, Seen, State, choose, closest, log_softmax, media_of, shared_prefix
from trisense.errors import BadInput

WIDTH = tiny_models.VOCABULARY


class Counting(CachingEngine):
    """Follows every id with id + 1. Its cache is the list of ids it has read; `runs` notes what it was given."""

    def __init__(self, max_positions: int = 100, vocab_size: int = WIDTH):
        super().__init__("counting", "here", tiny_models.processor(), vocab_size, max_positions)
        self.runs: list[list[int]] = []

    def _run(self, ids, media, cache, keep):
        self.runs.append(list(ids))
        logits = np.zeros((keep, WIDTH), np.float32)
        logits[np.arange(keep), (np.asarray(ids[-keep:]) + 1) % WIDTH] = 9
        return logits, [*(cache or []), *ids]

    def _cut(self, cache, length):
        return list(cache[:length])


def prompt(question: str = "abc", **media):
    return tiny_models.processor().prompt(Conversation.ask(question, **media))


def test_logits_become_log_probabilities():
    rows = np.random.default_rng(0).normal(size=(3, 7)) * 50
    assert np.allclose(np.exp(log_softmax(rows)).sum(1), 1)
    assert np.allclose(log_softmax(rows)[0] - log_softmax(rows)[0, 0], rows[0] - rows[0, 0])


def test_temperature_zero_takes_the_likeliest_and_a_seed_repeats_a_choice():
    logits = np.array([0.0, 3.0, 2.0, -1.0], np.float32)
    rng = np.random.default_rng(0)
    assert choose(logits, 0, 1, rng) == 1
    chances = [np.random.default_rng(seed) for seed in (1, 1, 2)]
    draws = [[choose(logits, 1.5, 1.0, chance) for _ in range(20)] for chance in chances]
    assert draws[0] == draws[1] != draws[2]


def test_samples_follow_the_distribution_and_stay_in_the_nucleus():
    logits = np.log(np.array([0.1, 0.5, 0.15, 0.25])).astype(np.float32)
    rng = np.random.default_rng(0)
    every = np.bincount([choose(logits, 1.0, 1.0, rng) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(every - [0.1, 0.5, 0.15, 0.25]).max() < 0.03
    # 0.5 alone is not 0.6; with 0.25 it is, and what they have is shared 2 : 1.
    nucleus = np.bincount([choose(logits, 1.0, 0.6, rng) for _ in range(4000)], minlength=4) / 4000
    assert np.abs(nucleus - [0, 2 / 3, 0, 1 / 3]).max() < 0.03
    assert {choose(logits, 1.0, 0.01, rng) for _ in range(50)} == {1}


def test_a_shared_beginning_ends_where_ids_or_media_differ():
    ids = np.array([1, 256, 256, 256, 2, 3])
    picture, other = Seen("image", 1, 3, b"a"), Seen("image", 1, 3, b"b")
    state = State(ids.tolist(), (picture,), read=6)
    assert shared_prefix(ids, (picture,), state) == 6
    assert shared_prefix(np.array([1, 256, 256, 256, 2, 9, 9]), (picture,), state) == 5
    assert shared_prefix(ids, (other,), state) == 1
    assert shared_prefix(ids, (), state) == 1
    assert shared_prefix(ids[:3], (picture,), state) == 1, "half a picture is no picture"
    assert shared_prefix(ids, (picture,), State(ids.tolist(), (picture,), read=4)) == 4, "only what has been read"


def test_media_are_told_apart_by_their_values():
    first, same, other = (media_of(prompt(images=[tiny_models.picture(seed)])) for seed in (0, 0, 1))
    assert first == same != other


def test_the_closest_state_has_read_the_most():
    engine = Counting()
    states = [engine.prefill(prompt(question)) for question in ("xyz", "ab", "abd")]
    assert closest(prompt("abde"), states) is states[2]
    assert closest(prompt("abde"), []) is None
    nothing = State([0] * 5, (), read=5)
    assert closest(prompt("abde"), [nothing]) is None


def test_prefill_reads_only_what_is_new_and_leaves_the_old_state():
    engine = Counting()
    first = engine.prefill(prompt("abc"))
    again = engine.prefill(prompt("abcde"), first)
    assert engine.runs[0] == prompt("abc").ids.tolist()
    assert engine.runs[1] == prompt("abcde").ids.tolist()[4:], "the marker of a user and abc were known"
    assert first.cache == first.ids == prompt("abc").ids.tolist()
    assert again.cache == again.ids
    engine.prefill(prompt("abc"), first)
    assert len(engine.runs[2]) == 1, "for the logits of the last position"


def test_an_answer_is_handed_out_before_it_is_read_back():
    engine = Counting()
    state = engine.prefill(prompt())
    state.logits = np.eye(WIDTH, dtype=np.float32)[10]
    ids = engine.stream(state, max_new_tokens=3)
    assert next(ids) == 10
    assert len(engine.runs) == 1
    assert list(ids) == [11, 12]
    assert state.finish == "length"
    assert state.ids[-3:] == [10, 11, 12]
    assert next(engine.stream(state, max_new_tokens=1)) == 13, "it can go on where it stopped"


def test_an_answer_ends_at_the_end_token_which_is_not_part_of_it():
    engine = Counting()
    (end,) = engine.processor.end_ids
    state = engine.prefill(prompt())
    state.logits = np.eye(WIDTH, dtype=np.float32)[end]
    assert list(engine.stream(state, max_new_tokens=5)) == []
    assert state.finish == "stop"
    assert state.ids == prompt().ids.tolist()


def test_an_answer_ends_where_the_model_ends_and_never_shows_a_placeholder():
    count = len(prompt().ids)
    engine = Counting(max_positions=count + 2)
    state = engine.prefill(prompt())
    state.logits = np.zeros(WIDTH, np.float32)
    state.logits[[256, 257]] = 9
    assert len(list(engine.stream(state, max_new_tokens=50))) == 2
    assert state.finish == "length"
    assert not {256, 257} & set(state.ids)


def test_log_probabilities_leave_the_state_alone():
    engine = Counting()
    state = engine.prefill(prompt())
    before = list(state.cache), list(state.ids)
    after = state.ids[-1] + 1
    likely = engine.logprobs(state, [after % WIDTH, (after + 1) % WIDTH])
    assert likely.dtype == np.float32
    assert (likely > -0.1).all()
    assert (engine.logprobs(state, [3, 3]) < -8).all()
    assert engine.logprobs(state, []).shape == (0,)
    assert (state.cache, state.ids) == before
    list(engine.stream(state, max_new_tokens=1))
    assert engine.logprobs(state, [(state.ids[-1] + 1) % WIDTH])[0] > -0.1, "also after a token not read back yet"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_the_first_token(options, named):
    engine = Counting()
    with pytest.raises(BadInput, match=named):
        engine.stream(engine.prefill(prompt()), **({"max_new_tokens": 5} | options))


def test_a_prompt_too_long_for_the_model_is_refused():
    with pytest.raises(BadInput, match="reads fewer than 4"):
        Counting(max_positions=4).prefill(prompt())
    engine = Counting(max_positions=len(prompt().ids) + 2)
    with pytest.raises(BadInput, match="prompt and answer"):
        engine.logprobs(engine.prefill(prompt()), [1, 2, 3, 4])


@pytest.mark.parametrize(("rows", "named"), [(257, "audio placeholder 257"), (259, "tokenizer.json has ids up to 260")])
def test_a_vocabulary_of_another_model_is_refused(rows, named):
    with pytest.raises(BadInput, match=named):
        Counting(vocab_size=rows)
