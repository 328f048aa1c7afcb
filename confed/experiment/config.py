"""What a researcher writes: the experiment file (TOML), read strictly.

Sections and keys are those of the dataclasses below and in ``learning_tables``; a key that is not there is refused with
the nearest valid one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from confed import record
from confed.errors import ConfigError, MissingFileError
from confed.experiment.learning_tables import (
    AdapterTable,
    AggregationTable,
    CompressionTable,
    MetricsTable,
    ModelTable,
    PrivacyTable,
    StopTable,
    UpdateTable,
)
from confed.manifest import APP, FILES, PRODUCTION, SEALED, SIMULATION, MetricTerms
from confed.scenario import Scenario

_LARGEST_FILE_BYTES = 1 << 20
_SETTINGS = dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppTable:
    """Entry points ``module:attribute`` of the ClientApp and the ServerApp, and the directory they are found in.

    ``directory`` is relative to the experiment file; the code under it is measured as the client's image.
    ``strategy`` names a strategy class of one's own in it (``module:Class``), which the enclave is to run, and
    ``strategy_memory_bytes`` the most that the opened updates of a round may take there.
    """

    client: str
    server: str
    directory: str = "."
    strategy: str = ""
    strategy_memory_bytes: int = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTable:
    """Rounds, seed, how often a round may be tried, and how long a round may take."""

    rounds: int
    seed: int
    max_attempts: int = 3
    round_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SitesTable:
    """How many sites there are, and their owners' names in the confed home; left out, ``site-01`` and so on.

    In simulation owners that are not there are made by themselves.
    """

    count: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.names and len(set(self.names)) != self.count:
            raise ConfigError("sites.names", expected=f"{self.count} of them, each once", got=len(self.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortTable:
    """Least number of distinct identities behind anything that leaves the enclave.

    ``extra`` sites are asked beyond those that a round takes: it closes with the first that answer.
    """

    least: int
    extra: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataTable:
    """Where data comes from.

    ``source = "sealed"``: ``shards`` names a function (sites: list of names, seed, settings) -> {site: arrays}, run
    where the owners are; each site seals its shard. ``source = "app"``: the ClientApp brings its own data.

    ``source = "files"``: each site seals a table. ``files`` is a path with ``{site}`` in it (a file, a folder of
    files, or what ``confed data seal`` made: a name that ends in ``.sealed``), or ``shards`` names a function like
    that, which returns a ``pyarrow.Table`` for each site. ``contract`` and ``pipeline`` are TOML files
    (``confed.preparation``), and ``statistics``, if there are any, is another; paths are beside the experiment file.
    ``description``, ``licence`` and ``derived_from`` are what the made owners say of their data.
    """

    source: str
    shards: str = ""
    files: str = ""
    contract: str = ""
    pipeline: str = ""
    statistics: str = ""
    description: str = "a site's data in a simulation"
    licence: str = "https://spdx.org/licenses/CC0-1.0"
    derived_from: str = "the experiment's own files"

    def __post_init__(self) -> None:
        if self.source not in (SEALED, FILES, APP):
            raise ConfigError("data.source", expected=f"{SEALED}, {FILES} or {APP}", got=self.source)
        if self.source == FILES:
            if bool(self.files) == bool(self.shards):
                raise ConfigError("data.files", expected="either data.files or data.shards", got="both or none")
            if self.files and "{site}" not in self.files:
                raise ConfigError("data.files", expected="a path with {site} in it", got=self.files)
            for name in ("contract", "pipeline"):
                if not getattr(self, name):
                    raise ConfigError(f"data.{name}", expected="a TOML file", got="nothing")
            return
        if (self.source == SEALED) != bool(self.shards):
            got = self.shards or "nothing"
            raise ConfigError("data.shards", expected="set exactly when data.source is sealed", got=got)
        for name in ("files", "contract", "pipeline"):
            if getattr(self, name):
                raise ConfigError(
                    f"data.{name}", expected="set only when data.source is files", got=getattr(self, name)
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttesterTable:
    """How TEEs on this machine make their evidence; changes no guarantee and is not in the manifest.

    Attributes: see ``confed.attestation.attesters.launch.AttesterTerms``; files are named beside the experiment file.
    """

    privilege_level: int = 0
    event_logs: tuple[str, ...] = ()
    tcti: str = ""
    registers: tuple[int, ...] = ()
    enrolment: str = ""
    algorithm: str = ""
    gpus: tuple[int | str, ...] = ()
    endorsements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeTable:
    """Which TEE runs the roles, how it is appraised, and how long attestation holds.

    Attributes:
        profile: the kind of TEE.
        devices: device evidence that must come along, such as ``nvidia-gpu/1``.
        policies: appraisal policies: files beside the experiment file, or names of ready ones (``confed evidence
            policies``); one for each profile but the simulated one.
        client_measurements, aggregator_measurements: what may run, as ``confed measure`` prints it; left out for the
            simulated TEE, whose measurement is that of the code here.
        anchors: PEM files by profile, where no roots are pinned in this release: certificates, and for a TPM the key of
            the authority that enrols.
        attester: how TEEs on this machine make their evidence.
    """

    profile: str = "simulated/1"
    devices: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    client_measurements: tuple[str, ...] = ()
    aggregator_measurements: tuple[str, ...] = ()
    anchors: Mapping[str, str] = field(default_factory=dict[str, str])
    attester: AttesterTable = field(default_factory=AttesterTable)
    max_age_s: int = 300
    reattest_rounds: int = 100
    reattest_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment file; ``scenario`` says what kind of run it is (``confed.scenario``)."""

    name: str
    environment: str
    app: AppTable
    run: RunTable
    sites: SitesTable
    cohort: CohortTable
    data: DataTable
    update: UpdateTable
    metrics: MetricsTable
    model: ModelTable = field(default_factory=ModelTable)
    aggregation: AggregationTable = field(default_factory=AggregationTable)
    adapter: AdapterTable | None = None
    compression: CompressionTable | None = None
    stop: StopTable = field(default_factory=StopTable)
    privacy: PrivacyTable | None = None
    tee: TeeTable = field(default_factory=TeeTable)
    scenario: Scenario = Scenario.FEDERATED
    settings: Mapping[str, bool | int | float | str] = field(default_factory=_SETTINGS)

    def __post_init__(self) -> None:
        if not self.name or not all(part.isalnum() for part in self.name.split("-")):
            raise ConfigError("name", expected="letters, digits and hyphens", got=self.name)
        if self.environment not in (SIMULATION, PRODUCTION):
            raise ConfigError("environment", expected=f"{SIMULATION} or {PRODUCTION}", got=self.environment)
        if not 1 <= self.sites.count <= 100_000:
            raise ConfigError("sites.count", expected="from 1 to 100000", got=self.sites.count)
        if not self.scenario.combines and self.sites.count != 1:
            raise ConfigError("sites.count", expected=f"1 in the scenario {self.scenario}", got=self.sites.count)
        if self.cohort.least > self.sites.count:
            raise ConfigError(
                "cohort.least", expected=f"at most sites.count ({self.sites.count})", got=self.cohort.least
            )
        for key in ("app.client", "app.server"):
            value = getattr(self.app, key.split(".")[1])
            if value.count(":") != 1 or not all(value.split(":")):
                raise ConfigError(key, expected="module:attribute", got=value)
        self._require_adapter_alone()
        _require_trains(self.scenario)
        self.scenario.require_adapter(named=self.adapter is not None)
        # The manifest's own rules, before anything is made.
        _ = self.update.terms
        MetricTerms(clear=self.metrics.clear, decimals=self.metrics.decimals)
        self.stop.terms.require(rounds=self.run.rounds, clear=self.metrics.clear)
        rounds = self.settings.get("num-server-rounds", self.run.rounds)
        if rounds != self.run.rounds:
            raise ConfigError("settings.num-server-rounds", expected=f"run.rounds ({self.run.rounds})", got=rounds)

    def _require_adapter_alone(self) -> None:
        if self.adapter is not None and self.model.trained != ("*",):
            raise ConfigError("model.trained", expected="left out: an adapter alone is trained", got="patterns")

    @property
    def run_config(self) -> dict[str, bool | int | float | str]:
        """What Flower calls ``run_config``: the settings, with ``num-server-rounds``."""
        return {**self.settings, "num-server-rounds": self.run.rounds}


def _require_trains(scenario: Scenario) -> None:
    if not scenario.trains:
        raise ConfigError("scenario", expected="one that trains (confed infer serves a model)", got=scenario)


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file.

    Raises:
        MissingFileError: it is not there.
        ConfigError: not TOML, or a key is unknown, missing, contradictory or of the wrong type.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise ConfigError(str(path), expected=f"at most {_LARGEST_FILE_BYTES} bytes", got=path.stat().st_size)
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise MissingFileError("experiment file", expected="a file", got=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), expected="TOML", got=str(error)) from error
    return record.from_json(Experiment, value, error=ConfigError)
