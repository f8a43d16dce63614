"""Several processes that make something together: here they are threads."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from trisense.data.team import ALONE, Team
from trisense.errors import BadInput


class Named(BadInput):
    """As some are that do not survive a pickle."""

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.name = name


def in_team(work: Callable[[Team], Any], world: int = 2) -> list[Any]:
    """What `work` gives, or the exception that ends it, in each of several."""
    met, given = Barrier(world, timeout=60), [b""] * world

    def one(rank: int) -> Any:
        def gather(value: Any) -> list[Any]:
            given[rank] = pickle.dumps(value)
            met.wait()
            found = [pickle.loads(one) for one in given]
            met.wait()
            return found

        try:
            return work(Team(rank, world, gather))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(one, range(world)))


def test_each_works_and_all_know_what_came_of_it():
    assert in_team(lambda team: team.together(lambda: 10 * team.rank), 3) == [[0, 10, 20]] * 3
    assert ALONE.together(lambda: "x") == ["x"]


def test_the_main_one_works_alone_and_tells():
    worked: list[int] = []

    def work(team: Team) -> str:
        return team.told(lambda: worked.append(team.rank) or "made")

    assert in_team(work) == ["made", "made"] and worked == [0]


def test_what_cannot_be_used_in_one_is_refused_in_all():
    def work(team: Team) -> None:
        if team.rank == 1:
            raise Named("picture.png: no picture", "picture.png")

    found = in_team(lambda team: team.together(lambda: work(team)))
    assert [(type(one), str(one)) for one in found] == [(BadInput, "picture.png: no picture")] * 2


def test_a_fault_in_one_keeps_its_place_and_ends_the_others():
    faults = [KeyError("key"), None, BadInput("no picture")]

    def work(team: Team) -> None:
        if fault := faults[team.rank]:
            raise fault

    own, *others = in_team(lambda team: team.together(lambda: work(team)), 3)
    assert own is faults[0]
    assert [(type(one), str(one)) for one in others] == [(BadInput, "no picture")] * 2
    faults[2] = None
    *_, last = in_team(lambda team: team.together(lambda: work(team)), 3)
    assert isinstance(last, RuntimeError) and str(last) == "process 0 failed: KeyError: 'key'"
