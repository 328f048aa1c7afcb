"""One confidential chat, whole: ``python experiments/chat/chat.py [QUESTION]``, or ``make chat``.

1. The model's owner tunes a small model and starts a key broker.
2. The owner seals the model, and approves the manifest that says how it is served.
3. A TEE (simulated) attests to the broker, opens the model, and takes sealed requests.
4. A relay stands in the network before it, and keeps every byte.
5. The requester's proxy verifies the TEE; the ``openai`` package, as it is, asks the proxy and streams the answer.
6. The receipt is checked, and what the relay kept is searched.

Everything lies in a temporary folder, and ends with the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import openai
from desk import desk_model, write_directory
from parties import Parties
from relay import Relay

from confed import canonical
from confed.cli.model import seal_model
from confed.errors import ConfedError, UnreachableError
from confed.experiment.serving import serving_manifest
from confed.inference.receipts import Receipt
from confed.inference.requester import Proof, RequesterPolicy
from confed.keybroker.identity import OwnerHome
from confed.manifest import Manifest
from confed.scenario import Scenario

QUESTION = "the printer in room 31 prints blank pages"
_OWNER = "model-owner"
_SERVING = Path(__file__).with_name("serving.toml")
_RECEIPT_WITHIN_S = 20.0
Say = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """What came of it."""

    answer: str
    receipt: Receipt
    relay: Relay


def chat(question: str, *, folder: Path, tuned: bool, say: Say) -> Chat:
    """Hold a chat of one question; returns when every party has ended.

    Args:
        question: what is asked.
        folder: an empty one; owners' keys are in the confed home of this process.
        tuned: whether the model is tuned first; one that is not babbles.
        say: is given what is printed, line by line; the answer's pieces as they come.

    Raises:
        ConfedError: a party did not start, or a check did not hold.
    """
    OwnerHome.create(_OWNER, environment="simulation", now_ms=time.time_ns() // 1_000_000).close()
    with ExitStack() as stack:
        parties = stack.enter_context(Parties(folder))
        broker = parties.start("broker", "broker", "serve", "--owner", _OWNER, "--listen", f"unix:{folder}/b.sock")
        # 1, 2.
        manifest = _sealed_and_approved(folder, tuned=tuned, say=say)
        endpoint = folder / "broker.json"
        endpoint.write_text(json.dumps(broker()), encoding="utf-8")
        say("broker    of the model's owner, on a Unix socket\n")
        # 3.
        serving = ("--config", str(folder / "serving" / _SERVING.name), "--broker", str(endpoint))
        tee = parties.start(
            "tee", "infer", "serve", str(folder / "manifest.json"), *serving, "--listen", "127.0.0.1:0"
        )()
        say(f"TEE       {tee['url']} (simulated), manifest {tee['manifest'][:16]}, model opened\n")
        # 4.
        relay = stack.enter_context(Relay.before(tee["url"]))
        say(f"relay     {relay.url}, between requester and TEE\n")
        # 5.
        policy = folder / "policy.json"
        policy.write_bytes(RequesterPolicy.of(manifest).encode())
        receipts = folder / "receipts"
        accepted = ("--policy", str(policy), "--receipts", str(receipts))
        proxy = parties.start("proxy", "infer", "proxy", relay.url, *accepted, "--listen", "127.0.0.1:0")()
        say(f"proxy     {proxy['url']}/v1, has verified the TEE\n\n")
        say(f"question  {question}\nanswer    ")
        answer = _streamed(question, f"{proxy['url']}/v1", say)
        # 6.
        receipt = _receipt(receipts, policy)
    say("\n\n" + _of_receipt(receipt) + "\n" + _of_relay(relay, question, answer))
    return Chat(answer=answer, receipt=receipt, relay=relay)


def _sealed_and_approved(folder: Path, *, tuned: bool, say: Say) -> Manifest:
    """Make the model, seal it, and have its owner approve the manifest, which is written too."""
    began = time.monotonic()
    write_directory(desk_model(tuned=tuned), folder / "model")
    say(f"model     a Llama of 0.2 million parameters, made by its owner in {time.monotonic() - began:.0f} s\n")
    serving = folder / "serving"
    serving.mkdir()
    config = serving / _SERVING.name
    config.write_bytes(_SERVING.read_bytes())
    seal_model(
        folder / "model",
        owner=_OWNER,
        recipients=(),
        target=serving / "model.sealed",
        force=False,
        least_cohort=1,
        total_rounds=1,
        scenarios=(Scenario.INFERENCE,),
    )
    manifest = serving_manifest(config, home=None)
    (folder / "manifest.json").write_bytes(manifest.encoded)
    with closing(OwnerHome.load(_OWNER)) as owner:
        owner.approve(manifest)
    return manifest


def _streamed(question: str, base_url: str, say: Say) -> str:
    """Ask as any program does that has the openai package, and say the answer's pieces as they come."""
    pieces: list[str] = []
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="help-desk", messages=[{"role": "user", "content": question}], temperature=0, stream=True
        )
        for event in stream:
            pieces.append(event.choices[0].delta.content or "")
            say(pieces[-1])
    return "".join(pieces)


def _receipt(folder: Path, policy: Path) -> Receipt:
    """Return the receipt that the proxy kept, checked anew against the requester's policy."""
    until = time.monotonic() + _RECEIPT_WITHIN_S
    pause = threading.Event()
    while not (found := sorted(folder.glob("*.json"))):
        if time.monotonic() > until:
            raise UnreachableError("receipt", expected="kept by the proxy", got="none")
        pause.wait(0.02)
    proof = Proof.from_json(canonical.decode(found[0].read_bytes()))
    receipt, _ = proof.verify(policy=RequesterPolicy.decode(policy.read_bytes()))
    return receipt


def _of_receipt(receipt: Receipt) -> str:
    told = {field.name: getattr(receipt, field.name) for field in dataclasses.fields(receipt)}
    lines = [f"  {name:10}{str(value)[:64]}" for name, value in told.items()]
    return "receipt   signed by the attested TEE; evidence, manifest and signature hold\n" + "\n".join(lines) + "\n"


def _of_relay(relay: Relay, question: str, answer: str) -> str:
    """Say what stood between requester and TEE could see."""
    lines = [f"relay     kept {len(relay.seen):,} bytes; this is what it could tell of them"]
    for piece in relay.pieces:
        way = "to the TEE  " if piece.upward else "from the TEE"
        lines.append(f"  {piece.at_s:7.3f} s  {way}  {len(piece.data):6,} bytes  {piece.line}")
    lines += [f"  key       {name}" for name in sorted(relay.epochs)]
    for name, text in (("question", question), ("answer", answer)):
        lines.append(f"  the {name} is {'AMONG' if relay.saw(text) else 'not among'} them")
    return "\n".join(lines) + "\n"


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def main() -> int:
    """Hold the chat that is asked for."""
    parser = argparse.ArgumentParser(prog="chat.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("question", nargs="?", default=QUESTION)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="confed-chat-") as folder:
        os.environ["CONFED_HOME"] = str(Path(folder) / "home")
        try:
            found = chat(told.question, folder=Path(folder), tuned=True, say=_say)
        except ConfedError as error:
            sys.stderr.write(f"error: {error}\n")
            return error.exit_code
    return 3 if found.relay.saw(told.question) or found.relay.saw(found.answer) else 0


if __name__ == "__main__":
    sys.exit(main())
