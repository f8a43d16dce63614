"""One real server on a free loopback port for all tests of the doors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from parrot import Parrot, serving


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[Parrot, str]]:
    """One server for all tests: building gradio's page takes a while."""
    parrot = Parrot()
    with serving(parrot) as address:
        yield parrot, address


@pytest.fixture
def parrot(server: tuple[Parrot, str]) -> Iterator[Parrot]:
    """The server's assistant, as new."""
    parrot = server[0]
    Parrot.__init__(parrot)
    yield parrot
    parrot.may_go_on.set()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for something another thread does; fails when it never happens."""

    def wait(happened: Callable[[], bool]) -> None:
        for _ in range(1500):
            if happened():
                return
            time.sleep(0.02)
        raise AssertionError("it never happened")

    return wait
