"""How long one verification of real evidence takes on one core, endorsements at hand.

    python -m benchmarks.verification [--repeats N]

Evidence is the vectors' (CONFED_VECTORS, default ../shared/vectors); nothing is fetched. Each case is verified once to
warm up (pinned roots, parsed endorsements) and then REPEATS times; the median is printed beside the issue's limit.
The signatures and the chain of the evidence itself are checked every time.
"""

import argparse
import json
import os
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

from confed.attestation.evidence import Expectation
from confed.attestation.vendor_files import kind_of, verify_vendor_files

FOLDER = Path(os.environ.get("CONFED_VECTORS") or Path(__file__).parents[2] / "shared" / "vectors")

# Kind, set, file keys of the index (evidence first), limit in milliseconds.
CASES = (
    ("snp", "snp/oak-genoa-oc", ("report", "vek"), 3.0),
    ("snp", "snp/oak-turin-oc", ("report", "vek"), 3.0),
    ("tdx", "tdx/dcap-qvl", ("quote", "collateral"), 2.0),
    ("sgx", "sgx/dcap-qvl", ("quote", "collateral"), 2.0),
    ("nitro", "nitro/dstack-attest", ("doc",), 3.0),
    ("nvidia-gpu", "gpu/nvtrust-hopper", ("report", "chain"), 10.0),
    ("nvidia-gpu", "gpu/sdk-hopper-535", ("report", "chain", "rim"), 10.0),
    ("azure-snp", "vtpm/lunal-az-snp", ("evidence",), None),
    ("gcp-tpm", "vtpm/gce-cos-85-no-nonce", ("evidence", "intermediate"), None),
    ("cca", "cca/trustee", ("evidence", "cpak"), None),
)
EXTRA = {
    "rim": "gpu/nvtrust-local-gpu-verifier/1010_0200_882_96005E0001_PROD.swidtag",
    "cpak": "cca/trustee/cpak-pub.json",
}
AT = {"gpu/nvtrust-hopper": 1735689600, "gpu/sdk-hopper-535": 1735689600}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    repeats, rows = arguments.repeats, []
    index = {entry["id"]: entry for entry in json.loads((FOLDER / "MANIFEST.json").read_text())["sets"]}
    for kind, name, keys, limit in CASES:
        entry = index[name]
        evidence, *endorsements = [(FOLDER / entry.get(key, EXTRA.get(key, ""))).read_bytes() for key in keys]
        now = datetime.fromtimestamp(entry.get("verify_at") or AT.get(name) or 1767225600, UTC)
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            verify_vendor_files(
                kind_of(kind),
                evidence,
                endorsements,
                expectation=Expectation(nonce=None, report_data=None),
                now=now,
            )
            seconds.append(time.perf_counter() - started)
        median_ms = statistics.median(seconds[1:]) * 1e3
        rows.append({"kind": kind, "evidence": name, "median_ms": round(median_ms, 3), "limit_ms": limit})
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'kind':<12} {'evidence':<28} {'median ms':>10} {'limit':>7}")
    for row in rows:
        shown = "" if row["limit_ms"] is None else f"{row['limit_ms']:.0f}"
        print(f"{row['kind']:<12} {row['evidence']:<28} {row['median_ms']:>10.2f} {shown:>7}")


if __name__ == "__main__":
    main()
