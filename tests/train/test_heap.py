"""With `map_tensors` a freed tensor leaves the process."""

from __future__ import annotations

import platform

import pytest
from children import finished

CODE = """
import psutil, sys, torch
from trisense.train.heap import map_tensors
if sys.argv[1] == "mapped":
    assert map_tensors()
tensors = [torch.ones(1 << 20) for _ in range(4)]
del tensors  # glibc raises its threshold to 4 MB now
tensors = [torch.ones(1 << 19) for _ in range(100)]
kept = tensors[-1:]
before = psutil.Process().memory_info().rss
del tensors
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems have no such heap")
def test_freed_tensors_go_back_though_one_that_came_later_stays():
    given_back = {how: int(finished("-c", CODE, how).stdout) for how in ("mapped", "plain")}
    assert given_back["mapped"] > 180e6 > 20e6 > given_back["plain"]
