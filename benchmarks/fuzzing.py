"""Millions of broken inputs against every verifier: nothing but AttestationError, in bounded time and memory.

    python -m benchmarks.fuzzing --inputs 1000000 [--kind snp] [--seed 7] [--atheris]

Seeds are the real evidence of the vectors (CONFED_VECTORS, default ../shared/vectors) with what belongs to it. One file
of a case, evidence or endorsement, is changed at a time: bits, bytes, lengths, ranges cut, doubled, moved or taken from
another case, and the values of JSON documents. A verifier may accept what is unchanged in meaning (white space in
JSON, a changed hint that it does not use); it may refuse with AttestationError; anything else is a defect and stops the
run with the input in a file. With --atheris the same targets run under the coverage-guided fuzzer, if it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confed.attestation.evidence import Expectation
from confed.attestation.vendor_files import KINDS, kind_of, verify_vendor_files
from confed.errors import AttestationError

FOLDER = Path(os.environ.get("CONFED_VECTORS") or Path(__file__).parents[2] / "shared" / "vectors")
SLOWEST_S = 5.0
"""CPU time beyond which one input counts as a defect."""

LARGEST_GROWTH_BYTES = 512 * 1024 * 1024
"""Growth of the process beyond which a run counts as a defect."""

_KEYS = ("vek", "collateral", "intermediate", "chain")
_EXTRA = {
    "gpu/sdk-hopper-535": ("gpu/nvtrust-local-gpu-verifier/1010_0200_882_96005E0001_PROD.swidtag",),
    "gpu/sdk-switch-ls10": ("gpu/nv-attestation-sdk/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml",),
    "cca/trustee": ("cca/trustee/cpak-pub.json",),
    "tdx/go-tdx-guest-cos113": ("tdx/go-tdx-guest-cos113/ccel_data.bin",),
    "vtpm/lunal-az-tdx-tpm": ("vtpm/lunal-az-tdx/collateral.json",),
    "vtpm/trustee-az-tdx-v0": ("vtpm/trustee-az-tdx/collateral.json",),
}
_SWTPM = tuple(
    f"vtpm/swtpm-local/{name}"
    for name in ("q.msg", "q.sig", "q.pcrs", "ak.pub", "ekcert.der", "issuercert.pem", "swtpm-localca-rootca-cert.pem")
)
_TIMES = {
    "vtpm/swtpm-local": 1_796_000_000,
    "vtpm/lunal-az-tdx-tpm": 1_776_290_768,
    "vtpm/trustee-az-tdx-v0": 1_754_471_202,
    "gpu/sdk-switch-ls10": 1_781_000_000,
}
"""Unix seconds at which a set is judged where its index says nothing: its endorsements are valid then."""

_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_TOKENS = (b"", b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'""', b"[" * 200, b'{"a":' * 100, b"9" * 400)


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    files: tuple[bytes, ...]
    now: datetime


def cases(kinds: tuple[str, ...]) -> list[Case]:
    index = json.loads((FOLDER / "MANIFEST.json").read_text())["sets"]
    found = []
    for entry in index:
        kind = _kind(entry)
        if kind not in kinds:
            continue
        names = [entry[key] for key in ("report", "quote", "doc", "evidence") if key in entry][:1]
        names += [entry[key] for key in _KEYS if entry.get(key, "(inline)") != "(inline)"]
        names += _EXTRA.get(entry["id"], ())
        if entry["id"] == "vtpm/swtpm-local":
            names = list(_SWTPM)
        if not all((FOLDER / name).is_file() for name in names):
            continue
        files = tuple((FOLDER / name).read_bytes() for name in names)
        now = datetime.fromtimestamp(entry.get("verify_at") or _moment(entry), UTC)
        found.append(Case(kind=kind, name=entry["id"], files=files, now=now))
    return found


def _moment(entry: dict[str, Any]) -> float:
    """A time at which the set's own certificates are valid, in Unix seconds."""
    validity = entry.get("vek_validity") or entry.get("vcek_validity")
    if validity:
        return sum(datetime.fromisoformat(text).timestamp() for text in validity) / 2
    return _TIMES.get(entry["id"], 1_735_689_600)


def _kind(entry: dict[str, Any]) -> str:
    if entry["kind"] == "gpu":
        return "nvidia-gpu"
    if entry["kind"] != "vtpm":
        return entry["kind"]
    if entry["id"] == "vtpm/swtpm-local":
        return "tpm"
    if "evidence" not in entry:
        return ""
    if "gce" in entry["id"]:
        return "gcp-tpm"
    return f"azure-{entry['hw']}" if "hw" in entry else "tpm"


def run(case: Case, files: tuple[bytes, ...]) -> bool:
    """Verify and tell whether it was accepted; anything but AttestationError leaves."""
    try:
        verify_vendor_files(
            kind_of(case.kind), files[0], files[1:], expectation=Expectation(nonce=None, report_data=None), now=case.now
        )
    except AttestationError:
        return False
    return True


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        _CHANGES[rng.randrange(len(_CHANGES))](rng, changed, other)
    return bytes(changed)


def _flip(rng: random.Random, data: bytearray, _: bytes) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, _: bytes) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.randrange(256)


def _number(rng: random.Random, data: bytearray, _: bytes) -> None:
    size = rng.choice((1, 2, 4))
    if len(data) > size:
        at = rng.randrange(len(data) - size)
        value = rng.choice(_INTERESTING) & ((1 << 8 * size) - 1)
        data[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))


def _cut(rng: random.Random, data: bytearray, _: bytes) -> None:
    start, end = _range(rng, data)
    del data[start:end]


def _double(rng: random.Random, data: bytearray, _: bytes) -> None:
    start, end = _range(rng, data)
    data[end:end] = data[start:end]


def _splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, end = _range(rng, data)
    first, last = _range(rng, other)
    data[start:end] = other[first:last]


def _truncate(rng: random.Random, data: bytearray, _: bytes) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _append(rng: random.Random, data: bytearray, _: bytes) -> None:
    data += rng.randbytes(rng.choice((1, 8, 1024)))


def _token(rng: random.Random, data: bytearray, _: bytes) -> None:
    start, end = _range(rng, data, longest=8)
    data[start:end] = rng.choice(_TOKENS)


def _range(rng: random.Random, data: bytes | bytearray, longest: int = 256) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randrange(longest + 1))


_CHANGES: tuple[Callable[[random.Random, bytearray, bytes], None], ...] = (
    _flip, _flip, _set, _number, _number, _cut, _double, _splice, _truncate, _append, _token,
)  # fmt: skip


def fuzz(found: list[Case], *, inputs: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    by_kind: dict[str, dict[str, Any]] = {}
    started, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(inputs):
        case = found[number % len(found)]
        files = list(case.files)
        which = 0 if rng.random() < 0.6 else rng.randrange(len(files))
        files[which] = mutate(rng, files[which], rng.choice(rng.choice(found).files))
        tally = by_kind.setdefault(case.kind, {"inputs": 0, "accepted": 0, "slowest_s": 0.0})
        before = time.process_time()
        try:
            accepted = run(case, tuple(files))
        except BaseException:
            print(f"defect: {case.name}, file {which}: {_keep(files[which])}", file=sys.stderr)
            raise
        spent = time.process_time() - before
        if spent > SLOWEST_S:
            raise SystemExit(f"defect: {case.name}, file {which} took {spent:.1f} s: {_keep(files[which])}")
        tally["inputs"] += 1
        tally["accepted"] += accepted
        tally["slowest_s"] = max(tally["slowest_s"], round(spent, 4))
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory
    if growth > LARGEST_GROWTH_BYTES:
        raise SystemExit(f"defect: the process grew by {growth / 1e6:.0f} MB")
    seconds = time.perf_counter() - started
    return {"inputs": inputs, "seconds": round(seconds, 1), "grew_mb": round(growth / 1e6, 1), "kinds": by_kind}


def _keep(data: bytes) -> str:
    with tempfile.NamedTemporaryFile(prefix="confed-fuzz-", delete=False) as file:
        file.write(data)
        return file.name


def guided(found: list[Case], *, inputs: int, seed: int) -> None:
    """Run the coverage-guided fuzzer; it ends the process."""
    import atheris  # installed by whoever asks for it

    atheris.instrument_all()

    def one(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        case = found[provider.ConsumeIntInRange(0, len(found) - 1)]
        rng = random.Random(provider.ConsumeIntInRange(0, 2**32))
        files = list(case.files)
        which = rng.randrange(len(files))
        tail = provider.ConsumeBytes(4096)
        files[which] = tail if provider.ConsumeBool() else mutate(rng, files[which], tail)
        run(case, tuple(files))

    atheris.Setup([sys.argv[0], f"-runs={inputs}", f"-seed={seed}", "-rss_limit_mb=2048", "-timeout=10"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; repeat for several")
    parser.add_argument("--atheris", action="store_true")
    parser.add_argument("--json", action="store_true", help="one line")
    arguments = parser.parse_args()
    found = cases(tuple(arguments.kind or KINDS))
    if not found:
        raise SystemExit(f"no real evidence in {FOLDER} (set CONFED_VECTORS)")
    if arguments.atheris:
        guided(found, inputs=arguments.inputs, seed=arguments.seed)
        return
    told = fuzz(found, inputs=arguments.inputs, seed=arguments.seed)
    print(json.dumps(told, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
