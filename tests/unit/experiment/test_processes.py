"""A service that dies is started again, a few times; one that must not die, or dies too often, is told by its name."""

import sys
import time

import pytest

from confed.errors import DeploymentError
from confed.experiment.processes import Process

ENDS = [sys.executable, "-c", "raise SystemExit('its last words')"]


def wait_for_end(process):
    process.process.wait(20)


def test_a_process_that_the_run_cannot_go_on_without_is_told_by_its_name(tmp_path):
    process = Process("the broker", ENDS, log=tmp_path / "log")
    wait_for_end(process)
    with pytest.raises(DeploymentError, match=r"the broker.*its last words"):
        process.keep_alive()


def test_a_process_is_started_again_with_a_fresh_document_and_not_for_ever(tmp_path):
    told = tmp_path / "told"
    write = f"import os, sys; open({str(told)!r}, 'ab').write(os.read(int(sys.argv[1]), 100))"
    documents = iter([b"second", b"third", b"fourth", b"never"])
    process = Process("the courier", [sys.executable, "-c", write, "{fd}"], log=tmp_path / "log", secret=b"first")
    process.start_again_with(lambda: ([sys.executable, "-c", write, "{fd}"], next(documents)))
    for _ in range(3):
        wait_for_end(process)
        process.keep_alive()
    wait_for_end(process)
    assert told.read_bytes() == b"firstsecondthirdfourth"
    with pytest.raises(DeploymentError, match="the courier"):
        process.keep_alive()


def test_a_process_that_runs_is_left_alone(tmp_path):
    process = Process("the courier", [sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    process.start_again_with(lambda: pytest.fail("started again"))
    try:
        before = process.process.pid
        process.keep_alive()
        assert process.process.pid == before
    finally:
        started = time.monotonic()
        process.stop()
        process.reap()
        assert time.monotonic() - started < 10
