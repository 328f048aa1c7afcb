"""What reading one column of a sealed Parquet dataset costs, beside pyarrow on the plain file from the page cache.

Both read the same bytes in the same run, in turns: the plain file through pyarrow's own file, the sealed one through
the seekable file over its container. The sealed file lies in the page cache too. Each reading is compared with the one
beside it; the median of these ratios is told with the interval that it lies in (``benchmarks.paired``).

    python -m benchmarks.dataset [--rows 2000000] [--columns 16] [--repeat 25] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.paired import Paired, in_turns, ratio
from confed.data.dataset import FORMAT, SealedDataset
from confed.journey import Kind
from confed.sealing.container import Container, Draft, seal_to_file

AIM = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--columns", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=25)
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
            f"sealed {found['sealed_s'] * 1000:.1f} ms, {found['chunks_opened']} of {found['chunks']} chunks opened\n"
            f"       {Paired(**found['ratio']).told(2)} x by the wall (aim {AIM:.0f}), "
            f"{Paired(**found['processor_ratio']).told(2)} x in processor time"
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
    ways: tuple[Callable[[], pa.Table], ...] = (
        lambda: SealedDataset(container.unlock(bytes(32))).read([name]),
        lambda: pq.ParquetFile(plain).read(columns=[name]),
    )
    (own_s, own_cpu), (plain_s, plain_cpu) = (
        ([wall for wall, _ in way], [busy for _, busy in way]) for way in in_turns(ways, turns=repeat)
    )
    return {
        "plain_s": statistics.median(plain_s),
        "sealed_s": statistics.median(own_s),
        "ratio": ratio(own_s, plain_s).json(),
        "processor_ratio": ratio(own_cpu, plain_cpu).json(),
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
