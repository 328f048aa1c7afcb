"""A client host that is called at its site's box and nowhere else; its launch document is in its environment."""

from __future__ import annotations

import threading

from confed.client.host import load_client_app, session_of
from confed.client.launch import ClientLaunch
from confed.client.listening import Listening
from confed.flower.serving import serve_client_app
from confed.wire.boxes import Boxes


class Nowhere:
    """Flower's side, from which no message comes."""

    def pull(self) -> None:
        return None

    def push(self, assignment: object, reply: object) -> None:
        raise AssertionError


def main() -> None:
    launch = ClientLaunch.from_environment()
    session = session_of(launch, layers=())
    app = load_client_app(launch, session.manifest)
    stop = threading.Event()
    with Boxes(launch.courier, own=launch.sites[0]) as boxes:
        listening = Listening(Nowhere(), boxes, stop, node_config={}, poll_interval_s=0.05)
        serve_client_app(app, listening, stop)


if __name__ == "__main__":
    main()
