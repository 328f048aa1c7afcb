"""Confidential inference beside the same engine without confed, over the same HTTP server and client, in one run.

    python -m benchmarks.inference [--megabytes N] [--streams N] [--repeat N] [--no-cold-start] [--json]

- first token: from a request to the first byte of its streamed answer; the engine takes no time.
- token: seconds of a stream of 2,000 words by their number, again with an engine that takes none; and the processor
  time to seal and to open one such frame.
- predict: a float32 tensor of 1 MB in, its sum back (and once the tensor itself back, which is twice the bytes).
- streams: tokens a second of 16 concurrent streams of a small random Llama that generates them in one batch.
- cold start: from starting the process to its being ready with a model of 1 GB: imports, evidence, the broker's
  release, opening; plain reads the safetensors file from the kernel's cache, as the sealed one is.

Sealed and plain take turns; a figure is the median, a cold start the least. The client is verified before it measures
anything; what verifying takes is a figure of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.inference_pair import NAME, Pair, pair
from benchmarks.opening import _quick
from confed.inference.client import ConfidentialClient
from confed.inference.frames import FrameOpener, FrameSealer
from confed.inference.tensors import write_tensors
from confed.model.weights import pack
from confed.serving import Padding, PaddingTerms

_WORDS = 2000
_JSON = (("content-type", "application/json"),)
_TENSORS = 64
AIMS = {
    "first_token_added_ms": 2.0,
    "token_added_us": 30.0,
    "frame_us": 30.0,
    "predict_added_ms": 3.0,
    "streams_ratio": 0.95,
    "cold_start_ratio": 1.3,
}
"""At most, but for the ratio of streams: at least."""


class Sealed:
    """Requests by confed's client."""

    def __init__(self, client: ConfidentialClient) -> None:
        self._client = client

    @contextmanager
    def post(self, path: str, body: bytes, headers: Any) -> Iterator[Iterator[bytes]]:
        with self._client.request("POST", path, body=body, headers=headers) as reply:
            _require(reply.head.status)
            yield iter(reply)


class Plain:
    """The same requests in the clear."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    @contextmanager
    def post(self, path: str, body: bytes, headers: Any) -> Iterator[Iterator[bytes]]:
        with self._client.stream("POST", path, content=body, headers=list(headers)) as response:
            _require(response.status_code)
            yield response.iter_raw()


Way = Sealed | Plain


def completion(words: int, prompt: str = "go on") -> bytes:
    """Return the body of a streamed completion."""
    value = {"model": NAME, "prompt": prompt, "max_tokens": words, "stream": True, "temperature": 0}
    return json.dumps(value).encode()


def first_token_s(way: Way) -> float:
    started = time.perf_counter()
    with way.post("/v1/completions", completion(1), _JSON) as pieces:
        next(pieces)
        took = time.perf_counter() - started
        for _ in pieces:
            pass
    return took


def stream_s(way: Way, words: int = _WORDS, prompt: str = "go on") -> float:
    started = time.perf_counter()
    with way.post("/v1/completions", completion(words, prompt), _JSON) as pieces:
        data = b"".join(pieces)
    if not data.endswith(b"data: [DONE]\n\n"):
        raise RuntimeError("a stream without its end")
    return time.perf_counter() - started


def predict_s(way: Way, *, output: str) -> float:
    body, headers = write_tensors({"x": _TENSOR})
    front = int(dict(headers)["inference-header-content-length"])
    value = {**json.loads(body[:front]), "outputs": [{"name": output}]}
    head = json.dumps(value).encode().ljust(front + 64)
    content = head + body[front:]
    named = (("content-type", "application/octet-stream"), ("inference-header-content-length", str(len(head))))
    started = time.perf_counter()
    with way.post(f"/v2/models/{NAME}/infer", content, named) as pieces:
        size = sum(len(piece) for piece in pieces)
    took = time.perf_counter() - started
    if size < (_TENSOR.nbytes if output == "same" else 1):
        raise RuntimeError("an answer without its tensor")
    return took


_TENSOR = np.random.default_rng(1).random(250_000, dtype=np.float32)


def in_turns(ways: dict[str, Way], work: Callable[[Way], float], repeat: int) -> dict[str, float]:
    """Return the median of each way's seconds, after one turn that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, way in ways.items():
            took = work(way)
            if turn:
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def small(folder: Path, repeat: int) -> dict[str, float]:
    """Return what a request costs where the engine costs nothing."""

    def write(place: Path) -> Path:
        path = place / "model.safetensors"
        path.write_bytes(b"".join(pack({"weight": np.zeros(4, dtype=np.float32)})))
        return path

    with (
        pair(folder / "instant", engine="engine:Instant", settings={}, write=write) as made,
        made.sealed() as (client, _),
        made.plain() as (http, _),
    ):
        ways: dict[str, Way] = {"confed": Sealed(client), "plain": Plain(http)}
        verified = statistics.median(_seconds(client.verify) for _ in range(5))
        first = in_turns(ways, first_token_s, repeat)
        words = in_turns(ways, stream_s, max(3, repeat // 4))
        sums = in_turns(ways, lambda way: predict_s(way, output="sum"), repeat)
        same = in_turns(ways, lambda way: predict_s(way, output="same"), repeat)
    return {
        "verify_ms": verified * 1e3,
        **_both("first_token", first, 1e3, "ms"),
        **_both("token", words, 1e6 / _WORDS, "us"),
        **_both("predict", sums, 1e3, "ms"),
        **_both("predict_and_back", same, 1e3, "ms"),
        "frame_us": frame_s() * 1e6,
    }


def frame_s(count: int = 20_000) -> float:
    """Return the processor seconds to seal a token's frame and to open it."""
    key = bytes(32)
    sealer = FrameSealer(key, padding=PaddingTerms(kind=Padding.POWERS, block_bytes=0))
    opener = FrameOpener(key, what="answer", largest_bytes=None)
    event = b"data: " + b"x" * 150 + b"\n\n"
    started = time.process_time()
    for _ in range(count):
        opener.feed(sealer.seal(2, event, final=False))
    return (time.process_time() - started) / count


def streams(folder: Path, *, count: int, tokens: int, repeat: int) -> dict[str, float]:
    """Return tokens a second of concurrent streams of a small language model that generates in batches."""
    from benchmarks.tuning import directory

    engine, settings = "clients.engines.generation:TextGeneration", {"batch": count, "max-new-tokens": tokens}

    def write(place: Path) -> Path:
        return directory(place / "llama", hidden=512, layers=8)

    def rate(way: Way) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda number: stream_s(way, tokens, f"stream number {number}"), range(count)))
        return time.perf_counter() - started

    with (
        pair(folder / "streams", engine=engine, settings=settings, write=write) as made,
        made.sealed() as (client, _),
        made.plain() as (http, _),
    ):
        found = in_turns({"confed": Sealed(client), "plain": Plain(http)}, rate, repeat)
    rates = {f"streams_{name}_tokens_per_s": count * tokens / took for name, took in found.items()}
    return {**rates, "streams_ratio": found["plain"] / found["confed"]}


def cold_start(folder: Path, *, megabytes: int, repeat: int) -> dict[str, float]:
    """Return seconds from starting a process to its being ready, the least of a few turns."""

    def write(place: Path) -> Path:
        size = megabytes * 10**6 // _TENSORS // 4
        path = place / "model.safetensors"
        with path.open("wb") as file:
            for part in pack({f"layer-{number}": _noise(size, number) for number in range(_TENSORS)}):
                file.write(part)
        return path

    def ready(made: Pair) -> dict[str, float]:
        with made.sealed() as (_, sealed):
            pass
        with made.plain() as (_, plain):
            pass
        return {"confed": sealed, "plain": plain}

    with pair(folder / "large", engine="engine:Instant", settings={}, write=write) as made:
        turns = [ready(made) for _ in range(repeat)]
    least = {name: min(turn[name] for turn in turns) for name in ("confed", "plain")}
    return {
        "cold_start_confed_s": least["confed"],
        "cold_start_plain_s": least["plain"],
        "cold_start_ratio": least["confed"] / least["plain"],
    }


def measure(*, megabytes: int, count: int, tokens: int, repeat: int, cold: bool) -> dict[str, float]:
    """Return all figures."""
    with tempfile.TemporaryDirectory(dir=_quick()) as name:
        folder = Path(name)
        figures = small(folder, repeat)
        figures |= streams(folder, count=count, tokens=tokens, repeat=max(3, repeat // 10)) if count else {}
        figures |= cold_start(folder, megabytes=megabytes, repeat=3) if cold else {}
    return figures


def report(figures: dict[str, float]) -> str:
    """Return the figures as text, each aim beside its own."""
    lines: list[str] = []
    for name, value in figures.items():
        line = f"{name:34} {value:10.2f}"
        if name in AIMS:
            least = name == "streams_ratio"
            reached = value >= AIMS[name] if least else value <= AIMS[name]
            line += (
                f"   aim {'at least' if least else 'at most'} {AIMS[name]:g}: {'reached' if reached else 'not reached'}"
            )
        lines.append(line)
    return "\n".join(lines)


def _require(status: int) -> None:
    if status != httpx.codes.OK:
        raise RuntimeError(f"status {status}")


def _both(name: str, found: dict[str, float], scale: float, unit: str) -> dict[str, float]:
    values = {f"{name}_{way}_{unit}": seconds * scale for way, seconds in found.items()}
    return {**values, f"{name}_added_{unit}": (found["confed"] - found["plain"]) * scale}


def _noise(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(size, dtype=np.float32)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.inference", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="of model in the cold start (default 1000)")
    parser.add_argument("--streams", type=int, default=16, help="concurrent streams (default 16; 0: leave them out)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each (default 96)")
    parser.add_argument("--repeat", type=int, default=40, help="turns of a small request (default 40)")
    parser.add_argument("--no-cold-start", action="store_true", help="leave the cold start out")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    told = parser.parse_args()
    figures = measure(
        megabytes=told.megabytes, count=told.streams, tokens=told.tokens, repeat=told.repeat,
        cold=not told.no_cold_start,
    )  # fmt: skip
    print(json.dumps(figures) if told.json else report(figures))


if __name__ == "__main__":
    main()
