"""Language models as directories at their owner's: sealed with what they need beside the weights, and opened again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from confed.errors import ConfigError, UsageError
from confed.experiment.config import load_experiment
from confed.model import weights
from confed.model.adapter import ADAPTER_CONFIG, exported, is_adapters, with_adapter
from confed.model.hub import documents_of, read_directory, weights_of

Arrays = Mapping[str, weights.Array]


def starting_arrays(directory: Path, adapter: Path | None) -> dict[str, weights.Array]:
    """Return what a directory is sealed as; with the adapter of an experiment file, where one is named.

    Raises:
        UsageError: not a directory that can be sealed, or an experiment without an adapter that fits it.
    """
    arrays = read_directory(directory)
    if adapter is None:
        return arrays
    experiment = load_experiment(adapter)
    if experiment.adapter is None:
        raise ConfigError("adapter", expected=f"a table in {adapter}", got="none")
    # A stack has room for every site in every round.
    made, _ = with_adapter(
        arrays,
        experiment.adapter.terms,
        rounds=experiment.run.rounds,
        updates=experiment.sites.count,
        seed=experiment.run.seed,
    )
    return made


def write_directory(arrays: Arrays, target: Path) -> None:
    """Write an opened model: base and documents, and the adapter in ``adapter/`` as PEFT reads it; whole or not at all.

    Guarantees: nobody but the user can read it.

    Raises:
        UsageError: something of that name is there already.
    """
    if target.exists():
        raise UsageError(str(target), expected="no such directory yet", got="one")
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))  # mode 0700
    try:
        base = {name: array for name, array in weights_of(arrays).items() if not is_adapters(name)}
        _write(made / "model.safetensors", base)
        for name, content in documents_of(arrays).items():
            (made / name).write_bytes(content)
        if factors := exported(arrays):
            (made / "adapter").mkdir()
            _write(made / "adapter" / "adapter_model.safetensors", factors)
            if ADAPTER_CONFIG in arrays:
                (made / "adapter" / "adapter_config.json").write_bytes(arrays[ADAPTER_CONFIG].tobytes())
        made.replace(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _write(file: Path, arrays: Arrays) -> None:
    with file.open("wb") as sink:
        for part in weights.pack(arrays):
            sink.write(part)
