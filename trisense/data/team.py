"""Several processes that make something together, without knowing who started them or how they speak to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from trisense.errors import BadInput

Result = TypeVar("Result")


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Team:
    """This process, the `rank`-th of `world`. gather: takes a value that pickles and gives what each process gave, in
    the order of their ranks. Every process makes the same calls in the same order; by default there is only one."""

    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = _alone

    @property
    def main(self) -> bool:
        return self.rank == 0

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """What `work` gives in each process, in the order of their ranks.

        When it fails in one, no other waits for that one in vain: all raise the BadInput of the first that has one;
        whatever else a process raised it raises again, and the others RuntimeError.
        """
        result, own, said = None, None, None
        try:
            result = work()
        except BadInput as error:
            said = BadInput(str(error))  # subclasses need not pickle
        except Exception as error:
            own, said = error, RuntimeError(f"process {self.rank} failed: {type(error).__name__}: {error}")
        found = self.gather((result, said))
        if own is not None:
            raise own
        failures = [error for _, error in found if error is not None]
        for error in sorted(failures, key=lambda one: not isinstance(one, BadInput)):
            raise error
        return [one for one, _ in found]

    def told(self, work: Callable[[], Result]) -> Result:
        """What `work` gives in the main process, which alone does it. Raises as `together`."""
        found: list[Any] = self.together(lambda: work() if self.main else None)
        return found[0]


ALONE = Team()
