"""The same engine behind the same interfaces over the same HTTP server, in the clear: what ``confed infer serve`` is
measured against.

    python -m benchmarks.inference_app.plain --engine MODULE:ATTRIBUTE --model FILE --listen-fd N --settings JSON
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from confed.inference.apis import Door
from confed.inference.edge import Pump, body_of, gone
from confed.inference.engine import Answer, load_engine
from confed.inference.listening import serve
from confed.inference.messages import AnswerHead, Request, RequestHead
from confed.memory import keep_freed, room_for
from confed.model.weights import unpack

_CARRIED = ("accept", "content-type", "inference-header-content-length")


class PlainEdge:
    """An ASGI application: the inner request is the outer one."""

    def __init__(self, door: Door, *, most_at_once: int) -> None:
        self._door = door
        self._engine = ThreadPoolExecutor(max_workers=most_at_once)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = bytearray()
        async for piece in body_of(receive, None, idle_s=None):
            body += piece
        told = [(name.decode(), value.decode()) for name, value in scope["headers"]]
        headers = tuple((name, value) for name, value in told if name in _CARRIED)
        request = Request(head=RequestHead(method=scope["method"], path=scope["path"], headers=headers), body=body)
        pump, answered = Pump(asyncio.get_running_loop()), list[AnswerHead]()
        self._engine.submit(pump.run, lambda: _pieces(self._door.answer(request), answered))
        watch = asyncio.ensure_future(gone(receive))
        watch.add_done_callback(lambda _future: pump.stop())
        try:
            started = False
            async for data in pump.pieces():
                if not started:
                    head = answered[0]
                    named = [(name.encode(), value.encode()) for name, value in head.headers]
                    await send({"type": "http.response.start", "status": head.status, "headers": named})
                    started = True
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            pump.stop()
            watch.cancel()


def _pieces(answer: Answer, answered: list[AnswerHead]) -> Iterator[bytes]:
    answered.append(answer.head)
    for piece in answer.body:
        yield bytes(piece)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb", buffering=0) as file:
        room = room_for(os.fstat(file.fileno()).st_size)
        filled = 0
        while filled < len(room):
            filled += file.readinto(room[filled:])
    return unpack(room)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.inference_app.plain", description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--name", required=True)
    told = parser.parse_args()
    keep_freed()
    sys.path.insert(0, str(Path(__file__).parent))
    model = load_engine(told.engine, arrays=_read(told.model), settings=told.settings)
    door = Door(model, name=told.name)
    print(json.dumps({"paths": door.paths}), flush=True)
    serve(PlainEdge(door, most_at_once=128), socket.socket(fileno=told.listen_fd))


if __name__ == "__main__":
    main()
