"""What reading one column of a sealed Parquet dataset costs, beside pyarrow on the plain file from the page cache.

Both read the same bytes in the same run, in turns: the plain file through pyarrow's own file, the sealed one through
the seekable file over its container. The sealed file lies in the page cache too.

    python -m benchmarks.dataset [--rows 2000000] [--columns 16] [--repeat 9] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.data.dataset import FORMAT, SealedDataset
from confed.journey import Kind
from confed.sealing.container import Container, Draft, seal_to_file

AIM = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(Path(folder), rows=told.rows, columns=told.columns, repeat=told.repeat)
    if told.json:
        print(json.dumps(result))
        return
    for codec, found in result["codecs"].items():
        print(
            f"{codec:6} one column of {told.columns}: plain {found['plain_s'] * 1000:.1f} ms, "
            f"sealed {found['sealed_s'] * 1000:.1f} ms ({found['ratio']:.2f} x, aim {AIM:.0f}), "
            f"{found['chunks_opened']} of {found['chunks']} chunks opened"
        )


def measured(folder: Path, *, rows: int, columns: int, repeat: int) -> dict[str, Any]:
    generator = np.random.default_rng(1)
    table = pa.table({f"column_{number}": generator.normal(size=rows) for number in range(columns)})
    return {
        "rows": rows,
        "columns": columns,
        "codecs": {codec: of_codec(folder, table, codec, repeat) for codec in ("none", "snappy", "zstd")},
    }


def of_codec(folder: Path, table: pa.Table, codec: str, repeat: int) -> dict[str, Any]:
    plain, sealed = folder / f"{codec}.parquet", folder / f"{codec}.sealed"
    pq.write_table(table, plain, compression=codec, use_dictionary=False)
    size = plain.stat().st_size
    detail = {"format": FORMAT, "contract": "00" * 32, "files": [{"offset": 0, "size_bytes": size}]}
    draft = Draft(kind=Kind.DATASET, container_id="benchmark", detail=detail)
    seal_to_file([plain.read_bytes()], draft, data_key=bytes(32), signing_key=Ed25519PrivateKey.generate(), path=sealed)
    name = table.column_names[len(table.column_names) // 2]
    container = Container.map(sealed)
    opened = container.unlock(bytes(32))
    seconds: dict[str, list[float]] = {"plain": [], "sealed": []}
    ways: dict[str, Callable[[], pa.Table]] = {
        "plain": lambda: pq.ParquetFile(plain).read(columns=[name]),
        "sealed": lambda: SealedDataset(container.unlock(bytes(32))).read([name]),
    }
    for _ in range(repeat + 1):
        for what, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[what].append(time.perf_counter() - started)
    best = {what: statistics.median(values[1:]) for what, values in seconds.items()}
    return {
        "plain_s": best["plain"],
        "sealed_s": best["sealed"],
        "ratio": best["sealed"] / best["plain"],
        "chunks": opened.chunk_count,
        "chunks_opened": chunks_opened(container, name),
        "file_bytes": size,
    }


def chunks_opened(container: Container, name: str) -> int:
    """Count which chunks one read asks for."""
    asked: set[int] = set()
    read = Container.sealed_chunk

    def counting(self: Container, index: int) -> memoryview:
        asked.add(index)
        return read(self, index)

    Container.sealed_chunk = counting  # type: ignore[method-assign]
    try:
        SealedDataset(container.unlock(bytes(32))).read([name])
    finally:
        Container.sealed_chunk = read  # type: ignore[method-assign]
    return len(asked)


if __name__ == "__main__":
    main()
