"""glibc's heap, which grows to several times what tensors take of it."""

from __future__ import annotations

import ctypes
import platform

M_MMAP_THRESHOLD = -3  # malloc.h
# What glibc begins with, before it raises it to the largest block that was freed, 32 MB at most.
THRESHOLD = 128 << 10
# Parameters of a language model from which on the memory is worth the time.
LARGE = 20_000_000


def map_tensors() -> bool:
    """Has glibc map every block of THRESHOLD bytes and more, and give it back when it is freed; whether it does.

    Otherwise a freed block seldom serves a tensor of the same size again (perhaps because torch asks for more, to align
    in), and checkpointed layers, computed anew one after the other, take as much of the heap as if all had been kept.
    New pages cost time, much of it where tensors are small (docs/log.md), so this is for checkpointed models of LARGE
    parameters or more. On other systems nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD))
