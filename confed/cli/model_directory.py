"""Language models as directories at their owner's: sealed with what they need beside the weights, and opened again."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from confed.adapter import STACK, AdapterTerms, module_of
from confed.errors import ConfigError, MissingPackageError, RefusedError, UsageError
from confed.experiment.config import Experiment, load_experiment
from confed.model import weights
from confed.model.adapter import ADAPTER_CONFIG, exported, is_adapters, with_adapter
from confed.model.hub import documents_of, read_directory, weights_of

Arrays = Mapping[str, weights.Array]


def starting_arrays(directory: Path, adapter: Path | None) -> dict[str, weights.Array]:
    """Return what a directory is sealed as; with the adapter of an experiment file, where one is named.

    That begins as PEFT's does; or, where ``adapter/`` has one of the same terms, with what that has learnt.

    Raises:
        UsageError: not a directory that can be sealed, or an experiment without an adapter that fits it.
    """
    arrays = read_directory(directory)
    if adapter is None:
        return arrays
    experiment = load_experiment(adapter)
    if experiment.adapter is None:
        raise ConfigError("adapter", expected=f"a table in {adapter}", got="none")
    terms = experiment.adapter.terms
    made, _ = with_adapter(
        arrays,
        terms,
        rounds=experiment.run.rounds,
        updates=_updates(experiment, adapter) if terms.method == STACK else 1,
        seed=experiment.run.seed,
    )
    return made | _tuned_before(directory / "adapter", made, terms)


def _tuned_before(folder: Path, made: Arrays, terms: AdapterTerms) -> dict[str, weights.Array]:
    """Return the factors that lie beside the model, as ``write_directory`` leaves them: tuning goes on from them.

    Raises:
        UsageError: factors that are not those of the experiment's adapter.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return {}
    try:
        factors = weights.unpack(file.read_bytes(), aligned=False)
        settings = json.loads((folder / "adapter_config.json").read_text())
    except (RefusedError, OSError, ValueError) as error:
        raise UsageError(str(folder), expected="an adapter as PEFT writes it", got="something else") from error
    expected = {name: (array.shape, array.dtype) for name, array in made.items() if module_of(name) is not None}
    same = {name: (array.shape, array.dtype) for name, array in factors.items()} == expected
    if terms.method == STACK or not same or settings.get("lora_alpha") != terms.alpha:
        what = f"one of rank {terms.rank} and alpha {terms.alpha:g} for these targets, or no such folder to begin anew"
        raise UsageError(str(folder), expected=what, got="a stack or another adapter")
    return factors


def _updates(experiment: Experiment, config_file: Path) -> int:
    """Return how many updates a round takes, for which a stack has room: the ServerApp says which part of the sites.

    Raises:
        MissingPackageError: its apps cannot be asked here, without Flower.
    """
    try:
        from confed.experiment.resolution import updates_of_round  # noqa: PLC0415 (imports Flower)
    except ModuleNotFoundError as error:
        expected = "the extra confed[flower]"
        raise MissingPackageError("--adapter with a stack", expected=expected, got=error.name) from error
    return updates_of_round(experiment, config_file=config_file)


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
