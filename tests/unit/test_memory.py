"""Memory for large values: room to fill, and what was freed goes back."""

from __future__ import annotations

import re
from pathlib import Path

from confed.memory import give_back, room_for


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
