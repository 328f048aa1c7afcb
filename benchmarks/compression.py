"""Each compression of an update: bytes a number, and seconds to encode and to decode it, beside a plain addition.

    python -m benchmarks.compression [--parameters 10000000] [--json]

Encoding is the client's, with everything that it does (it decodes what it sends, for the norm and for what is left
out); decoding is the enclave's, base added, on one thread and without decryption. The addition is NumPy's, of the base
and a difference that was sent whole.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from confed.compression import CompressionTerms
from confed.model.compressed import CompressedForm, Decoded, Flats, compress
from confed.model.weights import flats_of, layout_of

WAYS = (
    CompressionTerms(name="bf16", fraction=None, feedback=False),
    CompressionTerms(name="int8", fraction=None, feedback=False),
    CompressionTerms(name="top-k", fraction=0.05, feedback=False),
    CompressionTerms(name="top-k", fraction=0.01, feedback=False),
)


class _Opened:
    """Chunks that are open already."""

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._parts = parts

    def read_chunk_into(self, index: int, buffer: memoryview) -> None:
        buffer[:] = self._parts[index]


def measure(terms: CompressionTerms, trained: Flats, base: Flats, form: CompressedForm) -> dict[str, float | str]:
    """Return one way's figures."""
    started = time.perf_counter()
    made = compress(form, trained, base, carried=None, generator=np.random.default_rng(1))
    encoded = time.perf_counter()
    decoded, room = Decoded(_Opened(made.parts), form, base), bytearray(form.span_bytes)
    for index in range(decoded.chunk_count):
        start, end = decoded.chunk_span(index)
        decoded.read_chunk_into(index, memoryview(room)[: end - start])
    name = terms.name if terms.fraction is None else f"{terms.name} {terms.fraction:g}"
    return {
        "name": name,
        "bytes_a_number": form.total_bytes / sum(form.counts),
        "encode_s": encoded - started,
        "decode_s": time.perf_counter() - encoded,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=10_000_000, help="numbers of the model, float32")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    arrays = {"w": generator.standard_normal(arguments.parameters, dtype=np.float32)}
    difference = generator.standard_normal(arguments.parameters, dtype=np.float32) * np.float32(0.01)
    trained = {"w": arrays["w"] + difference}
    started = time.perf_counter()
    np.add(arrays["w"], difference, out=trained["w"])
    addition = time.perf_counter() - started
    layout = layout_of(arrays)
    flats = [flats_of(each, layout) for each in (trained, arrays)]
    found = [measure(terms, *flats, CompressedForm.of(layout, terms)) for terms in WAYS]
    if arguments.json:
        print(json.dumps({"parameters": arguments.parameters, "addition_s": addition, "ways": found}))
        return
    print(f"{arguments.parameters} numbers, float32; a plain addition {addition:.3f} s")
    for row in found:
        print(
            "{name:12} {bytes_a_number:.2f} bytes a number, encode {encode_s:.3f} s, decode {decode_s:.3f} s".format(
                **row
            )
        )


if __name__ == "__main__":
    main()
