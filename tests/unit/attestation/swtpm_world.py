"""Software TPMs that run: made with EK certificates of a local authority, started on the loopback, and ended."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

_SECONDS = 20
_LOCAL_AUTHORITY = Path("/usr/share/swtpm/swtpm-localca")


def missing() -> str:
    """Say what is not there to run a software TPM with; nothing if all is."""
    tools = [name for name in ("swtpm", "swtpm_setup", "swtpm_cert") if shutil.which(name) is None]
    return ", ".join(tools + ([] if _LOCAL_AUTHORITY.exists() else ["swtpm-localca"]))


needs_swtpm = pytest.mark.skipif(
    bool(missing()), reason=f"no software TPM here: {missing()} not installed (swtpm-tools)"
)


def manufacture(folder: Path, name: str) -> Path:
    """Make a TPM with an EK certificate, and the authority of this folder if it is the first; return its state."""
    authority = folder / "authority"
    authority.mkdir(exist_ok=True)
    (folder / "options").touch()
    (folder / "localca.conf").write_text(
        f"statedir = {authority}\nsigningkey = {authority}/signkey.pem\nissuercert = {authority}/issuercert.pem\n"
        f"certserial = {authority}/certserial\n"
    )
    (folder / "setup.conf").write_text(
        f"create_certs_tool = {_LOCAL_AUTHORITY}\ncreate_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/options\nactive_pcr_banks = sha256\n"
    )
    state = folder / name
    state.mkdir()
    made = subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpmstate", f"dir://{state}", "--create-ek-cert", "--overwrite",
         "--config", str(folder / "setup.conf")],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"swtpm_setup makes no TPM here: {made.stdout[-300:]!r}")
    return state


@contextmanager
def running(state: Path):
    """Run a TPM, and give its TCTI once it answers."""
    for _ in range(5):
        port = free_ports()
        process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=tcp,port={port}",
             "--ctrl", f"type=tcp,port={port + 1}", "--flags", "not-need-init,startup-clear"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            if listens(process, port + 1) and listens(process, port):
                yield f"swtpm:host=127.0.0.1,port={port}"
                return
        finally:
            process.terminate()
            process.wait(timeout=_SECONDS)
    pytest.fail("swtpm does not start")


def free_ports() -> int:
    """Return a port that is free together with the next one, which swtpm's control channel has to be."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + _SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if f":{port:04X} " in listening():
            return True
        time.sleep(0.01)
    return False


def listening() -> str:
    """Return the local addresses that somebody listens on; connecting would use the one connection that swtpm takes."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return " ".join(line.split()[1] + " " for line in lines if line.split()[3] == "0A")
