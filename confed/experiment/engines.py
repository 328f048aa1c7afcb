"""Ways to run the same apps under the same protocol: ``local``, ``ray`` and ``deployment``.

What differs is who carries messages and in which processes client TEEs live. Manifest, brokers, courier and aggregator
are the same; so are the final weights.
"""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from confed.compression import CompressionTerms
from confed.errors import ConfedError, ConfigError, DeploymentError
from confed.experiment.resolution import entry_point
from confed.experiment.services import GOVERNOR, Services
from confed.governor.launch import GOVERNOR_FILE, GovernorLaunch
from confed.simulation.workers import WorkerPool, workers_for

if TYPE_CHECKING:
    from flwr.serverapp import ServerApp

ENGINES = ("local", "ray", "deployment")
_APART = ("deployment",)
_WATCH_S = 0.1


def run_engine(engine: str, services: Services, *, watch: Callable[[], None]) -> None:
    """Run the experiment's rounds on an engine, calling ``watch`` about ten times a second meanwhile.

    Raises:
        ConfedError: the run was refused or fell short, or a process died.
    """
    runners: dict[str, Callable[[Services, Callable[[], None]], None]] = {
        "local": _run_local,
        "ray": _run_ray,
        "deployment": _run_deployment,
    }
    require_engine(engine)
    with _governor_file(services):
        runners[engine](services, watch)


def require_engine(engine: str) -> None:
    """Refuse a name that is no engine's.

    Raises:
        ConfigError: it is none.
    """
    if engine not in ENGINES:
        raise ConfigError("engine", expected=", ".join(ENGINES), got=engine)


def require_staying(engine: str, compression: CompressionTerms | None) -> None:
    """Refuse to carry anything over from round to round on an engine whose client TEEs do not stay.

    Raises:
        ConfigError: compression with feedback on Ray, which may run a site's next round in another worker.
    """
    if engine == "ray" and compression is not None and compression.feedback:
        raise ConfigError("compression.feedback", expected="false on the engine ray", got="true")


@contextlib.contextmanager
def early_pool(engine: str, *, sites: int, early: Sequence[str]) -> Generator[WorkerPool | None]:
    """Start the client TEEs of the ``local`` engine, so that they import libraries while the run is resolved.

    What they print goes to a file beside the run's sockets until ``WorkerPool.log`` is kept with the run.
    """
    if engine != "local":
        yield None
        return
    with (
        tempfile.TemporaryDirectory(prefix="confed-") as folder,
        WorkerPool(workers_for(sites), log=Path(folder) / "clients.log", early=early) as pool,
    ):
        yield pool


def uses_separate_brokers(engine: str) -> bool:
    """Whether each owner's broker is a process of its own."""
    return engine in _APART


@contextlib.contextmanager
def _governor_file(services: Services) -> Generator[Path]:
    path = services.sockets / "governor.json"
    launch = GovernorLaunch(
        manifest=base64.b64encode(services.manifest.encoded).decode(),
        aggregator=services.aggregator,
        courier=services.courier_for(GOVERNOR if services.network else ""),
        events_file=str(services.run_directory / "events.jsonl"),
        round_timeout_s=services.prepared.experiment.run.round_timeout_s,
    )
    path.write_bytes(launch.encode())
    with _environment(GOVERNOR_FILE, str(path)):
        yield path


@contextlib.contextmanager
def _environment(name: str, value: str) -> Generator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _run_local(services: Services, watch: Callable[[], None]) -> None:
    """Client TEEs are two processes that host a fixed share of the sites each; Flower's Grid is in this process."""
    from flwr.app import Context, RecordDict  # noqa: PLC0415 (Flower is slow to import)

    from confed.flower.messages import use_local_task_identity  # noqa: PLC0415
    from confed.simulation.grid import LocalGrid  # noqa: PLC0415

    if services.pool is None:
        raise DeploymentError("client TEEs", expected="started before the run", got="none")
    names = [site.owner.name for site in services.manifest.sites]
    count = workers_for(len(names))
    use_local_task_identity(run_id=1, node_id=1)
    workers = services.pool.launch(
        [
            services.client_launch(
                sites=names[number::count], measurement=services.manifest.code.client_image, shared=len(names) > 1
            )
            for number in range(count)
        ]
    )
    with contextlib.ExitStack() as stack:
        grid = LocalGrid(workers, partitions=len(names))
        stack.callback(grid.close)
        app: ServerApp = _server_app(services)
        context = Context(
            run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(services.manifest.settings)
        )
        _in_thread(lambda: app(grid=grid, context=context), services, watch)


def _run_ray(services: Services, watch: Callable[[], None]) -> None:
    """Client TEEs are Ray's actors, Flower's own simulation engine schedules them: the way to a cluster."""
    from confed.simulation.ray_engine import run_on_ray  # noqa: PLC0415 (Ray is an extra)

    launch = services.client_launch(sites=(), measurement=services.manifest.code.client_image, shared=True)
    run_on_ray(
        launch,
        server_app=_server_app(services),
        launch_file=services.sockets / "client.json",
        run_config=dict(services.manifest.settings),
        run_in_thread=lambda run: _in_thread(run, services, watch),
    )


def _run_deployment(services: Services, watch: Callable[[], None]) -> None:
    """SuperLink, ServerApp and one client host a site are processes of their own on loopback, with TLS."""
    from confed.experiment.deployment import run_deployment  # noqa: PLC0415 (Flower is slow to import)

    run_deployment(services, watch=watch)


def _server_app(services: Services) -> ServerApp:
    directory = str(services.prepared.directory)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return entry_point("app.server", services.prepared.experiment.app.server)  # pyright: ignore[reportReturnType]


def _in_thread(run: Callable[[], object], services: Services, watch: Callable[[], None]) -> None:
    """Run in a thread and watch from this one, so that Ctrl-C and a dead process end the run at once."""
    failure: list[BaseException] = []

    def body() -> None:
        # The edge between threads: whatever ended the run is raised again in the main one.
        try:
            run()
        except BaseException as error:  # noqa: BLE001
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    while thread.is_alive():
        watch()
        services.keep_alive()
        thread.join(_WATCH_S)
    watch()
    if failure:
        # A process that died is the cause of what the governor ran into.
        services.require_no_death()
        raise _told(failure[0]) from failure[0]


def _told(failure: BaseException) -> ConfedError:
    """Return the confed error behind an exception that Flower may have wrapped, or one that names what went wrong."""
    seen: BaseException | None = failure
    while seen is not None:
        if isinstance(seen, ConfedError):
            return seen
        seen = seen.__cause__ or seen.__context__
    lines = str(failure).strip().splitlines() or [""]
    got = f"{type(failure).__name__}: {lines[-1]}"
    return DeploymentError("the governor's app", expected="to run to its end", got=got)
