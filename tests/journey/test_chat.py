"""``make chat`` with a model that babbles: everything it says, and not a word of it anywhere but at its two ends."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "chat"))
from chat import chat

from confed.model.weights import unpack

QUESTION = "canary-question-5c1e: who reads this?"


@pytest.mark.timeout(300)
def test_a_chat_streams_and_leaves_no_word_on_the_wire_or_in_a_file(
    quick_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tempfile.mkdtemp(dir=quick_disk))
    monkeypatch.setenv("CONFED_HOME", str(folder / "home"))
    monkeypatch.setenv("TMPDIR", str(folder))
    said: list[str] = []
    found = chat(QUESTION, folder=folder, tuned=False, say=said.append)
    told = "".join(said)
    # What is printed: the answer in pieces, the receipt, and what the relay could tell.
    assert len(found.answer) > 8
    at = said.index(f"question  {QUESTION}\nanswer    ")
    assert "".join(said[at + 1 :]).startswith(found.answer)
    assert said[at + 1] != found.answer
    assert found.receipt.manifest in told
    assert all(name in told for name in ("POST /confed/v1/evidence", "POST /confed/v1/exchange", "not among them"))
    assert "AMONG" not in told
    assert found.relay.epochs == {found.receipt.epoch}
    assert found.receipt.epoch in told
    # What is nowhere: a word of question or answer, and the weights but at their owner's.
    weights = max(unpack((folder / "model" / "model.safetensors").read_bytes()).values(), key=lambda array: array.size)
    canaries = {
        "question": b"canary-question-5c1e",
        "answer": found.answer.encode(),
        "weights": weights.tobytes()[-64:],
    }
    places = {"the wire": found.relay.seen} | {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and (folder / "model") not in path.parents
    }
    assert {"broker.log", "tee.log", "proxy.log", "model.sealed"} <= {Path(path).name for path in places}
    assert [(name, what) for name, data in places.items() for what, word in canaries.items() if word in data] == []
    # What is over: every process.
    ended = [child for child in psutil.Process().children(recursive=True) if "confed.cli.main" in child.cmdline()]
    assert ended == []
