"""A round of a deployment whose sites are on slow links: every byte of the model and the updates goes through them.

``python -m benchmarks.slow_link [--parameters N] [--megabits M] [--delay-ms D] [--clients C] [--rounds R] [--json]``.

Each site reaches the courier through a link of its own (``benchmarks.link``: a proxy on loopback, since ``tc netem``
needs a kernel module), D ms and M Mbit/s each way. Everything else is the deployment as ``confed run`` starts it.
What counts is that nothing times out: one connection for each site and direction of work, nobody dropped, and no
more bytes than there are to move. Beside the seconds stands what the link alone would take.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.link import Direction, Link
from benchmarks.round import APPS, CONFIG
from confed.client.launch import ClientLaunch
from confed.experiment.running import RunRequest, run_experiment
from confed.experiment.services import Services


class SlowSites:
    """Puts a link between each client TEE and the courier for as long as the context lasts."""

    def __init__(self, *, rate: float, delay_s: float) -> None:
        self._rate, self._delay_s = rate, delay_s
        self.links: dict[str, Link] = {}
        self._launch = Services.client_launch

    def __enter__(self) -> SlowSites:  # noqa: PYI034
        launch = self._launch

        def through_a_link(services: Services, *, sites: Sequence[str], measurement: str, shared: bool) -> ClientLaunch:
            link = Link(
                services.courier,
                up=Direction(rate=self._rate, delay_s=self._delay_s),
                down=Direction(rate=self._rate, delay_s=self._delay_s),
            )
            self.links[sites[0]] = link
            near, services.courier = services.courier, link.endpoint
            try:
                return launch(services, sites=sites, measurement=measurement, shared=shared)
            finally:
                services.courier = near

        Services.client_launch = through_a_link
        return self

    def __exit__(self, *_: object) -> None:
        Services.client_launch = self._launch
        for link in self.links.values():
            link.__exit__()


def main() -> None:
    """Run it and print what passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--megabits", type=float, default=20.0)
    parser.add_argument("--delay-ms", type=float, default=100.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    terms = parser.parse_args()
    rate = terms.megabits * 1e6 / 8
    with (
        tempfile.TemporaryDirectory(prefix="slow-link-") as place,
        SlowSites(rate=rate, delay_s=terms.delay_ms / 1000) as slow,
    ):
        folder = Path(place) / "experiment"
        shutil.copytree(APPS, folder, ignore=shutil.ignore_patterns("plain_*", "__pycache__"))
        values = {"parameters": terms.parameters, "clients": terms.clients, "rounds": terms.rounds}
        (folder / "config.toml").write_text(CONFIG.format(**values))
        request = RunRequest(
            config_file=folder / "config.toml",
            engine="deployment",
            home=Path(place) / "home",
            runs_directory=Path(place) / "runs",
        )
        started = time.perf_counter()
        summary = run_experiment(request, watcher=lambda _manifest, events: list(events.poll()) and None)
        events = [json.loads(line) for line in (Path(summary["run_dir"]) / "events.jsonl").read_text().splitlines()]
    found = figures(terms, summary, events, slow, total_s=time.perf_counter() - started)
    print(json.dumps(found) if terms.json else "\n".join(f"{key:28} {value}" for key, value in found.items()))


def figures(
    terms: argparse.Namespace, summary: dict[str, Any], events: list[dict[str, Any]], slow: SlowSites, *, total_s: float
) -> dict[str, Any]:
    """Return what is printed."""
    model_bytes = 4 * terms.parameters
    begun = [event["time"] for event in events if event["event"] == "round-started"]
    ended = [event["time"] for event in events if event["event"] == "round-combined"]
    return {
        "confed_s": [round((end - begin) / 1000, 1) for begin, end in zip(begun, ended, strict=True)],
        "link_alone_s": round(2 * (model_bytes * 8 / (terms.megabits * 1e6) + terms.delay_ms / 1000), 1),
        "dropped": summary["dropped"],
        "model_mb": model_bytes / 1e6,
        "up_mb": {site: round(link.up.bytes_passed / 1e6, 1) for site, link in sorted(slow.links.items())},
        "down_mb": {site: round(link.down.bytes_passed / 1e6, 1) for site, link in sorted(slow.links.items())},
        "connections": {site: link.connections for site, link in sorted(slow.links.items())},
        "total_s": round(total_s, 1),
    }


if __name__ == "__main__":
    main()
