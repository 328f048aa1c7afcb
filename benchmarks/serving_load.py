"""Many streams at once for a while: errors, and what a replica and a proxy have more of than before.

    python -m benchmarks.serving_load [--streams N] [--seconds S] [--json]

Broker, replica (a simulated TEE) and proxy are processes of ``confed``; every stream is a chat that the ``openai``
package asks and reads to its end, word by word, and then the next one. The engine has no weights and pauses for each
word, so that what is loaded is the road. Each answer is compared with what it must be. Threads, open files and memory
of both processes are taken after a first round, which fills pools and caches, and at the end, when connections that
were kept have gone. The exit code is 1 if there was an error, or if something was left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
from safetensors.numpy import save_file

from confed.cli.model import seal_model
from confed.experiment.serving import serving_manifest
from confed.inference.requester import RequesterPolicy
from confed.keybroker.identity import OwnerHome
from confed.scenario import Scenario
from experiments.chat.parties import Parties

_OWNER = "model-owner"
_APP = Path(__file__).with_name("serving_app")
_WORDS = 20
_POOLS = 128 + 8
"""Threads of a process whose pool has grown to its bound."""
_SETTLES_S = 7.0
"""Connections that are kept alive go after five seconds."""


def measure(*, streams: int, seconds: float) -> dict[str, Any]:
    """Return how many answers came, what went wrong, and threads, files and memory before and after."""
    with tempfile.TemporaryDirectory(prefix="confed-load-") as place, Parties(Path(place)) as parties:
        folder = Path(place)
        os.environ["CONFED_HOME"] = str(folder / "home")
        url = _started(parties, folder)
        watched = _watched()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            load = _Load(client)
            load.run(streams=streams, seconds=0)  # one answer each
            before = _settled(watched)
            began, warm = time.monotonic(), load.answers
            load.run(streams=streams, seconds=seconds)
            took = time.monotonic() - began
            after = _settled(watched)
    return {
        "streams": streams,
        "seconds": round(took, 1),
        "answers": load.answers - warm,
        "words_per_s": round((load.answers - warm) * _WORDS / took, 1),
        "first_word_s": round(statistics.median(load.first_s), 3),
        "errors": load.errors,
        "before": before,
        "after": after,
    }


class _Load:
    """Streams that ask one after the other."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client
        self._lock = threading.Lock()
        self.answers = 0
        self.first_s: list[float] = []
        self.errors: dict[str, int] = {}

    def run(self, *, streams: int, seconds: float) -> None:
        """Let each stream ask until its time is over, once at least."""
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(streams) as pool:
            list(pool.map(lambda number: self._stream(number, until), range(streams)))

    def _stream(self, number: int, until: float) -> None:
        for turn in range(1_000_000):
            self._ask(f"stream-{number}-{turn}")
            if time.monotonic() >= until:
                return

    def _ask(self, prompt: str) -> None:
        expected = "".join(f"{prompt}/{number} " for number in range(_WORDS))
        began, first, text = time.monotonic(), 0.0, ""
        wrong = ""
        try:
            for event in self._client.chat.completions.create(
                model="words", messages=[{"role": "user", "content": prompt}], max_tokens=_WORDS, stream=True
            ):
                first = first or time.monotonic() - began
                text += event.choices[0].delta.content or ""
            wrong = "" if text == expected else "another answer"
        except Exception as error:  # noqa: BLE001 (counted by kind: whatever it is, it is a failure of the load)
            wrong = type(error).__name__
        with self._lock:
            self.answers += not wrong
            self.first_s.append(first)
            if wrong:
                self.errors[wrong] = self.errors.get(wrong, 0) + 1


def _started(parties: Parties, folder: Path) -> str:
    """Make an owner and a model, start broker, replica and proxy, and return the proxy's address."""
    serving = shutil.copytree(_APP, folder / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    OwnerHome.create(_OWNER, environment="simulation", now_ms=time.time_ns() // 1_000_000).close()
    broker = parties.start("broker", "broker", "serve", "--owner", _OWNER, "--listen", f"unix:{folder}/b.sock")
    save_file({"scale": np.ones(1, dtype=np.float32)}, folder / "model.safetensors")
    seal_model(
        folder / "model.safetensors",
        owner=_OWNER,
        recipients=(),
        target=serving / "model.sealed",
        force=False,
        least_cohort=1,
        total_rounds=1,
        scenarios=(Scenario.INFERENCE,),
    )
    manifest = serving_manifest(serving / "serving.toml", home=None)
    with closing(OwnerHome.load(_OWNER)) as owner:
        owner.approve(manifest)
    (folder / "manifest.json").write_bytes(manifest.encoded)
    (folder / "policy.json").write_bytes(RequesterPolicy.of(manifest).encode())
    (folder / "broker.json").write_text(json.dumps(broker()), encoding="utf-8")
    words = (str(folder / "manifest.json"), "--config", str(serving / "serving.toml"))
    where = ("--broker", str(folder / "broker.json"), "--listen", "127.0.0.1:0")
    replica = parties.start("replica", "infer", "serve", *words, *where)()
    accepted = ("--policy", str(folder / "policy.json"), "--listen", "127.0.0.1:0")
    return str(parties.start("proxy", "infer", "proxy", replica["url"], *accepted)()["url"])


def _watched() -> dict[str, psutil.Process]:
    """Return the replica's process and the proxy's."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        if "confed.inference" in words:
            found["replica"] = process
        elif "proxy" in words:
            found["proxy"] = process
    return found


def _settled(watched: Mapping[str, psutil.Process]) -> dict[str, dict[str, float]]:
    time.sleep(_SETTLES_S)
    return {
        name: {
            "threads": process.num_threads(),
            "files": process.num_fds(),
            "mb": round(process.memory_info().rss / 1e6, 1),
        }
        for name, process in watched.items()
    }


def leaks(found: Mapping[str, Any]) -> list[str]:
    """Return what there is more of than before: files, and threads beyond what the pools may have.

    Memory is shown and not judged: requests of an epoch are remembered by their digests, and the last few thousand
    statements are kept parsed.
    """
    return [
        f"{name} {what}"
        for name, before in found["before"].items()
        for what, least in (("threads", _POOLS), ("files", 0))
        if found["after"][name][what] > max(before[what], least)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--streams", type=int, default=100, help="at once; a replica and a proxy take 128")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    found = measure(streams=told.streams, seconds=told.seconds)
    left = leaks(found)
    if told.json:
        print(json.dumps({**found, "leaks": left}))
    else:
        print(f"{found['streams']} streams, {found['seconds']} s: {found['answers']} answers of {_WORDS} words,")
        print(f"{found['words_per_s']} words/s, first word after {found['first_word_s']} s")
        print(f"errors: {found['errors'] or 0}")
        for name, before in found["before"].items():
            after = found["after"][name]
            print(f"{name}: " + ", ".join(f"{what} {before[what]} -> {after[what]}" for what in before))
        print("left behind: " + (", ".join(left) or "nothing"))
    return 1 if found["errors"] or left else 0


if __name__ == "__main__":
    sys.exit(main())
