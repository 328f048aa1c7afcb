"""Memory for large values: room to fill, and what was freed goes back."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from confed.memory import KeptRoom, give_back, room_for


def resident_mb() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000


def test_room_takes_no_memory_before_it_is_filled_and_can_be_written() -> None:
    before = resident_mb()
    room = room_for(512 * 1024 * 1024)
    assert resident_mb() - before < 64
    assert (len(room), room.readonly, room.format) == (512 * 1024 * 1024, False, "B")
    room[5:8] = b"abc"
    assert bytes(room[5:8]) == b"abc"


def test_no_room_is_room_too() -> None:
    assert bytes(room_for(0)) == b""


def test_freed_blocks_between_kept_ones_are_given_back() -> None:
    # A large block that is freed teaches the C library to take such blocks from its heap, and to keep them there.
    bytes([1]) * (8 * 1024 * 1024)
    blocks = [bytes([1]) * (1024 * 1024) for _ in range(256)]
    kept = blocks[63::64]
    held = resident_mb()
    del blocks
    give_back()
    assert held - resident_mb() > 150
    assert len(kept) == 4


def place_of(view: memoryview) -> int:
    return np.frombuffer(view, dtype=np.uint8).ctypes.data


def test_memory_that_nobody_refers_to_is_lent_again_also_for_the_same_bytes_sealed() -> None:
    kept = KeptRoom()
    first = kept.lend(1_000_000)
    place = place_of(first)
    del first
    again = kept.lend(1_000_000 + 16 + 5000)
    assert place_of(again) == place
    del again
    smaller = kept.lend(10)
    assert (place_of(smaller), len(smaller)) == (place, 10)
    del smaller
    assert len(kept.lend(50_000_000)) == 50_000_000


@pytest.mark.parametrize(
    "hold",
    [lambda view: view[5:9], lambda view: np.frombuffer(view, dtype=np.uint8)[5:9]],
    ids=["a view", "an array"],
)
def test_memory_that_somebody_kept_a_view_of_is_not_lent_to_anybody_else(
    hold: Callable[[memoryview], memoryview],
) -> None:
    kept = KeptRoom()
    lent = kept.lend(1000)
    lent[:] = b"x" * 1000
    held = hold(lent)
    del lent
    other = kept.lend(1000)
    other[:] = b"y" * 1000
    assert bytes(held) == b"xxxx"


FAULTS = """
import resource, sys, threading
from confed import memory
getattr(memory, sys.argv[1])()
def work():
    for turn in range(6):
        if turn == 1:
            before.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        blocks = [b"x" * (1 << 20) for _ in range(150)]
        del blocks
before = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before[0])
"""


def faults(setting: str) -> int:
    told = subprocess.run([sys.executable, "-c", FAULTS, setting], capture_output=True, check=True, text=True)
    return int(told.stdout)


def test_what_a_thread_frees_is_there_for_the_next() -> None:
    assert faults("keep_freed_by_all") < 1000 < faults("keep_freed")
