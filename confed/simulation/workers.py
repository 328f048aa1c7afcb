"""The client TEEs of the ``local`` engine: processes that are started early and told later what to run.

Importing torch and Flower takes seconds of CPU, so one process imports them while the run is still being resolved, and
forks a TEE for each worker. A TEE that dies is started again as a process of its own: a new instance, which has to
attest anew.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flwr.app import Error, Message

from confed.client.batches import encode_batch
from confed.client.host import receive_frame, send_frame
from confed.client.launch import ClientLaunch
from confed.errors import ConfedError, DeploymentError
from confed.flower.messages import decode_message
from confed.simulation.tethered import tether

_READY_S = 120.0
_STOP_S = 5.0
_WORKERS = 2


def workers_for(sites: int) -> int:
    """How many client TEEs the ``local`` engine spreads the sites over: TEE n acts for every n-th site."""
    return min(_WORKERS, sites)


class WorkerPool:
    """One process from which ``count`` client TEEs are forked; as a context it ends with them.

    ``early`` names libraries that it imports for all of them.
    """

    def __init__(self, count: int, *, log: Path, early: Sequence[str] = ()) -> None:
        self.log = log
        self._early = early
        self._ends: list[tuple[int, socket.socket]] = []
        self._process, self._ends = _start(count, log, early)
        self._workers: list[Worker] = []

    def launch(self, launches: Sequence[ClientLaunch]) -> list[Worker]:
        """Tell each TEE what to run and return them when all have imported their app.

        Raises:
            DeploymentError: one ended, or took too long.
        """
        if len(launches) != len(self._ends):
            raise DeploymentError("client TEEs", expected=f"{len(self._ends)} launch documents", got=len(launches))
        for launch, (descriptor, channel) in zip(launches, self._ends, strict=True):
            _tell(descriptor, launch)
            self._workers.append(Worker(launch, channel, log=self.log, early=self._early))
        self._ends = []
        for worker in self._workers:
            worker.wait_ready()
        return list(self._workers)

    def __enter__(self) -> WorkerPool:  # noqa: PYI034 (not made to be inherited from)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ends:
            # Nobody was told what to run, so no key was made: all there is to wait for is imports.
            self._process.kill()
        for descriptor, channel in self._ends:
            os.close(descriptor)
            channel.close()
        for worker in self._workers:
            worker.stop()
        _end(self._process)


class Worker:
    """One client TEE as the Grid sees it: a channel that answers."""

    def __init__(self, launch: ClientLaunch, channel: socket.socket, *, log: Path, early: Sequence[str] = ()) -> None:
        self._launch = launch
        self._early = early
        self._channel: socket.socket | None = channel
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def wait_ready(self) -> None:
        """Wait until the TEE has imported its app.

        Raises:
            DeploymentError: it ended, or took too long.
        """
        channel = self._channel
        if channel is None:
            raise self._died()
        channel.settimeout(_READY_S)
        try:
            frame = receive_frame(channel)
        except (OSError, ConfedError) as error:
            raise self._died() from error
        if frame != b"ready":
            raise self._died()
        channel.settimeout(None)

    def handle_all(self, messages: Sequence[tuple[int, Message]]) -> Iterator[Message]:
        """Send messages, each to a partition, as one batch and yield their replies in that order, as they come.

        A TEE that dies meanwhile answers all that it has not answered with a stable code, since those results are
        lost with it, and is started again for the next messages.
        """
        sent = False
        for _, message in messages:
            frame = None
            try:
                if not sent:
                    sent = True
                    if self._channel is None:
                        self._start_again()
                    self._send(encode_batch(messages))
                frame = receive_frame(self._channel) if self._channel is not None else None
            except (OSError, ConfedError):
                frame = None
            if frame is None:
                self.stop()
                yield Message(Error(code=0, reason="client-died"), reply_to=message)
            else:
                yield decode_message(frame)

    def stop(self) -> None:
        """Close the channel, which ends the TEE; a process of its own is ended if it does not end by itself."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _send(self, frame: bytes) -> None:
        if self._channel is not None:
            send_frame(self._channel, frame)

    def _start_again(self) -> None:
        self._process, ((descriptor, self._channel),) = _start(1, self._log, self._early)
        _tell(descriptor, self._launch)
        self.wait_ready()

    def _died(self) -> DeploymentError:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return DeploymentError("client TEE", expected="a process that serves", got=lines[-1] if lines else "its end")


def _start(
    count: int, log: Path, early: Sequence[str]
) -> tuple[subprocess.Popen[bytes], list[tuple[int, socket.socket]]]:
    """Start a process for ``count`` TEEs; return it and, for each, where its launch document and messages go."""
    pipes = [os.pipe() for _ in range(count)]
    sockets = [socket.socketpair() for _ in range(count)]
    arguments = [sys.executable, "-m", "clients", *(word for name in early for word in ("--early", name))]
    for (read_end, _), (_, theirs) in zip(pipes, sockets, strict=True):
        arguments += ["--launch-fd", str(read_end), "--channel-fd", str(theirs.fileno())]
    inherited = [*(read_end for read_end, _ in pipes), *(theirs.fileno() for _, theirs in sockets)]
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            tether(arguments),
            pass_fds=inherited,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    for read_end, _ in pipes:
        os.close(read_end)
    for _, theirs in sockets:
        theirs.close()
    return process, [(write_end, ours) for (_, write_end), (ours, _) in zip(pipes, sockets, strict=True)]


def _tell(descriptor: int, launch: ClientLaunch) -> None:
    # Who died meanwhile does not read it; that it is not ready is noticed at once.
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as stream:
        stream.write(launch.encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
