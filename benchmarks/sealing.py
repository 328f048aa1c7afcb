"""Sealing and opening in GB/s, one thread and two, beside AES-256-GCM alone in the same run.

    python -m benchmarks.sealing [--megabytes N] [--repeat N] [--json]

Every figure is the best of a few repetitions; GB are 10^9 bytes of plaintext. Files are not involved: sealing goes
to memory (and to nowhere), opening comes from it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from confed.journey import Kind
from confed.sealing.container import CHUNK_BYTES, Container, Draft, OpenContainer, seal, seal_to_bytes
from confed.sealing.derivation import new_data_key

_TAG_BYTES = 16


def measure(*, megabytes: int, repeat: int) -> dict[str, float]:
    """Return GB/s by name."""
    plaintext = os.urandom(CHUNK_BYTES) * megabytes
    data_key, signing_key = new_data_key(), Ed25519PrivateKey.generate()
    draft = Draft(kind=Kind.MODEL, container_id="benchmark")

    def best(work: Callable[[], object]) -> float:
        return max(_rate(work, len(plaintext)) for _ in range(repeat))

    sealed, _ = seal_to_bytes([plaintext], draft, data_key=data_key, signing_key=signing_key)
    opened = Container.parse(sealed).unlock(data_key)
    room = bytearray(len(plaintext))
    figures = {
        "aes_256_gcm": best(lambda: _encrypt_raw(plaintext)),
        "aes_256_gcm_2": best(lambda: _encrypt_raw_in_two(plaintext)),
        "sha_256": best(lambda: hashlib.sha256(plaintext).digest()),
    }
    for threads in (1, 2):
        figures[f"seal_{threads}"] = best(
            lambda threads=threads: seal_to_bytes(
                [plaintext], draft, data_key=data_key, signing_key=signing_key, threads=threads
            )
        )
        figures[f"seal_stream_{threads}"] = best(
            lambda threads=threads: seal(
                [plaintext], draft, data_key=data_key, signing_key=signing_key, sink=_Nowhere(), threads=threads
            )
        )
        figures[f"open_reused_{threads}"] = best(lambda threads=threads: opened.read_all_into(room, threads=threads))
        figures[f"open_{threads}"] = best(lambda threads=threads: opened.read_all(threads=threads))
    buffer = bytearray(CHUNK_BYTES)
    figures["open_chunks_1"] = best(lambda: _open_chunk_by_chunk(opened, buffer))
    return figures


def report(figures: dict[str, float]) -> str:
    """Return the figures as text, each with its share of the raw AES-256-GCM rate of as many threads."""
    raw = figures["aes_256_gcm"]
    texts = {
        "aes_256_gcm": "AES-256-GCM alone, one thread, 1 MiB chunks into one reused buffer",
        "aes_256_gcm_2": "the same in two threads",
        "sha_256": "SHA-256 alone (the digest of the whole file)",
        "seal_stream_1": "seal as a stream, one thread",
        "seal_stream_2": "seal as a stream, two threads (one seals, one hashes)",
        "seal_1": "seal into new memory, one thread",
        "seal_2": "seal into new memory, two threads",
        "open_reused_1": "open whole into memory used before, one thread",
        "open_reused_2": "open whole into memory used before, two threads",
        "open_1": "open whole into new memory, one thread",
        "open_2": "open whole into new memory, two threads",
        "open_chunks_1": "open chunk by chunk into one reused buffer, one thread",
    }
    shares = ratios(figures)
    lines = [f"{text:68} {figures[name]:6.2f} GB/s {shares[name]:5.2f} x AES" for name, text in texts.items()]
    both = 1 / (1 / raw + 1 / figures["sha_256"])
    lines += [
        f"Sealing is limited by SHA-256: AES then SHA-256 in one thread cannot pass {both:.2f} GB/s, and with two",
        f"threads the digest, one sequence, cannot pass {figures['sha_256']:.2f} GB/s. Opening hashes nothing: AES",
        "limits it and, where the memory is new, the kernel that has to provide it page by page.",
    ]
    return "\n".join(lines)


def ratios(figures: dict[str, float]) -> dict[str, float]:
    """Return each figure's share of the raw AES-256-GCM rate of as many threads."""
    raw = {name: figures["aes_256_gcm_2" if name.endswith("_2") else "aes_256_gcm"] for name in figures}
    return {name: value / raw[name] for name, value in figures.items()}


def _encrypt_raw_in_two(plaintext: bytes) -> None:
    middle, view = len(plaintext) // CHUNK_BYTES // 2 * CHUNK_BYTES, memoryview(plaintext)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_encrypt_raw, (view[:middle], view[middle:])))


def _encrypt_raw(plaintext: bytes | memoryview) -> None:
    aead, view = AESGCM(os.urandom(32)), memoryview(plaintext)
    sealed = memoryview(bytearray(CHUNK_BYTES + _TAG_BYTES))
    for index, start in enumerate(range(0, len(view), CHUNK_BYTES)):
        aead.encrypt_into(index.to_bytes(12, "big"), view[start : start + CHUNK_BYTES], None, sealed)


def _open_chunk_by_chunk(opened: OpenContainer, buffer: bytearray) -> None:
    for index in range(opened.chunk_count):
        opened.read_chunk_into(index, buffer)


class _Nowhere(io.RawIOBase):
    """Takes everything and keeps nothing."""

    def write(self, data: object, /) -> int:
        return memoryview(data).nbytes  # pyright: ignore[reportArgumentType]


def _rate(work: Callable[[], object], size_bytes: int) -> float:
    started = time.perf_counter()
    work()
    return size_bytes / (time.perf_counter() - started) / 1e9


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.sealing", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="MiB of plaintext (default 256)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions, the best counts (default 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    figures = measure(megabytes=arguments.megabytes, repeat=arguments.repeat)
    print(json.dumps({**figures, "ratio": ratios(figures)}) if arguments.json else report(figures))


if __name__ == "__main__":
    main()
