"""What the kernel does with child processes whose parent ends, whichever way it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import confed
from confed.errors import DeploymentError
from confed.simulation.processes import ChildProcesses
from confed.simulation.tethered import tether

WAIT_FOR_EVER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
PARENT = """
import pathlib, signal, sys
from confed.simulation.processes import ChildProcesses

folder = pathlib.Path(sys.argv[1])
with ChildProcesses() as children:
    child = children.start("child", sys.argv[2:], folder=folder, environment={})
    children.wait(lambda: "up" in child.log.read_text(), what="the child is up", timeout_s=30)
    print(child.popen.pid, flush=True)
    signal.pause()
"""


def ends_within(process_id: int, *, seconds: float) -> bool:
    """Tell whether a process, ours or not, ends in time."""
    descriptor = os.pidfd_open(process_id)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), *WAIT_FOR_EVER],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(confed.__path__[0]).parent)},
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([child], [], [], 0)[0]

            parent.send_signal(signal.SIGKILL)

            assert select.select([child], [], [], 10)[0]
        finally:
            os.close(child)


def test_a_child_outlives_the_thread_that_asked_for_it_and_ends_with_the_block(tmp_path: Path) -> None:
    with ChildProcesses() as children:

        def start() -> None:
            child = children.start("child", WAIT_FOR_EVER, folder=tmp_path, environment={})
            children.wait(lambda: "up" in child.log.read_text(), what="the child is up", timeout_s=30)

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        child = children["child"]
        assert not ends_within(child.popen.pid, seconds=0.2)

    assert child.popen.returncode == -signal.SIGTERM


def test_a_command_whose_parent_has_ended_already_is_not_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = tether(["/bin/sh", "-c", f"echo run > {run}"])
    somebody_else = [str(os.getppid()) if part == str(os.getpid()) else part for part in command]

    assert subprocess.run(somebody_else, check=False, capture_output=True).returncode == 1
    assert not run.exists()

    subprocess.run(command, check=True)
    assert run.exists()


@pytest.mark.parametrize(("may_end", "expected"), [(False, r"child: .*exit code 3: last"), (True, "the sun rises")])
def test_a_child_that_ended_is_named_unless_it_may_end(*, may_end: bool, expected: str, tmp_path: Path) -> None:
    with ChildProcesses() as children:
        command = ["/bin/sh", "-c", "echo first; echo last; exit 3"]
        child = children.start("child", command, folder=tmp_path, environment={}, may_end=may_end)
        child.popen.wait()

        with pytest.raises(DeploymentError, match=expected):
            children.wait(lambda: False, what="the sun rises", timeout_s=0)
