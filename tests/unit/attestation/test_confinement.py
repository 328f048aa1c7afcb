import json
import os
import platform
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from confed.attestation.tee import seccomp
from confed.attestation.tee.confinement import default_readable
from confed.attestation.tee.kernel import MACHINES, NUMBERS, raw_syscall

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is of Linux")
HERE = Path(__file__).parent
ROOT = Path(__file__).parents[3]


def python(*arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    """Run the probe under the given terms, with somebody to talk to outside."""
    base = tmp_path_factory.mktemp("c")
    for name in ("outside", "inside", "shared"):
        (base / name).mkdir()
    (base / "outside" / "secret").write_text("secret")
    (base / "shared" / "public").write_text("public")
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"unix:{base}/s")
    server.start()
    tcp = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0" + str(base))
    abstract.listen()

    def run(**terms):
        for leftover in (base / "inside").iterdir():
            leftover.unlink()
        terms = {
            "outside": str(base / "outside"), "inside": str(base / "inside"), "shared": str(base / "shared"),
            "target": f"unix:{base}/s", "abstract": str(base), "port": tcp.getsockname()[1],
            "network": False, "allow_exec": False, "torch": False, **terms,
        }  # fmt: skip
        return json.loads(python(str(HERE / "confined_probe.py"), json.dumps(terms)))

    yield run
    server.stop(0)
    tcp.close()
    abstract.close()


@pytest.fixture(scope="module")
def confined(probe):
    return probe(torch=True)


REFUSED = {
    "read outside": "landlock",
    "list outside": "landlock",
    "write outside": "landlock",
    "write shared": "landlock",
    "ptrace": "seccomp",
    "read a stranger's memory": "seccomp",
    "mount": "seccomp",
    "unshare": "seccomp",
    "clone a namespace": "seccomp",
    "clone3": "seccomp",
    "bpf": "seccomp",
    "io_uring": "seccomp",
    "environment of the parent": "landlock",
    "signal the parent": "landlock-scoped",
    "abstract socket": "landlock-scoped",
    "TCP": "seccomp-unix-sockets-only",
    "UDP": "seccomp-unix-sockets-only",
    "execute": "seccomp-no-exec",
    "execute what it wrote": "seccomp-no-exec",
}


@pytest.mark.parametrize(("what", "layer"), REFUSED.items(), ids=REFUSED.keys())
def test_a_confined_process_cannot(confined, what, layer):
    if not any(active.startswith(layer) for active in confined["layers"]):
        pytest.skip(f"this kernel has no {layer}")
    assert confined[what].startswith("refused"), confined[what]


STILL = {
    "read shared": "done public",
    "write inside": "done 1",
    "rename inside": "done x",
    "gRPC over a Unix socket": "done hello",
    "fork": "done 7",
    "random": "done 8",
    "status": "done True",
    "silence": "done 1",
    "numpy in threads": f"done {[262144.0] * 4}",
    "torch": "done 262144.0",
}


@pytest.mark.parametrize(("what", "result"), STILL.items(), ids=STILL.keys())
def test_a_confined_process_still_can(confined, what, result):
    assert confined[what] == result


def test_with_a_network_it_has_one_and_does_not_claim_otherwise(probe):
    results = probe(network=True)
    assert results["TCP"].startswith("done")
    assert not {"network-namespace", "landlock-no-tcp", "seccomp-unix-sockets-only"} & set(results["layers"])
    assert results["gRPC over a Unix socket"] == "done hello"


def test_where_execution_is_allowed_it_is_and_not_of_what_it_wrote(probe):
    results = probe(allow_exec=True)
    assert results["execute"] == "done 0"
    assert "seccomp-no-exec" not in results["layers"]
    if any(layer.startswith("landlock") for layer in results["layers"]):
        assert results["execute what it wrote"].startswith("refused")


LANDLOCK = {"landlock", "landlock-no-tcp", "landlock-scoped"}
SECCOMP = {"seccomp", "seccomp-no-exec", "seccomp-unix-sockets-only"}
KERNELS = {
    "no landlock": LANDLOCK,
    "landlock that restricts nothing": LANDLOCK,
    "no seccomp": SECCOMP,
    "dumps all the same": {"not-dumpable"},
    "no network namespaces": {"network-namespace"},
    "namespaces in name only": {"network-namespace"},
    "network namespaces for users only": set(),
    "no way to refuse privileges": {"no-new-privileges", *LANDLOCK, *SECCOMP},
    "no seccomp and no landlock": {*LANDLOCK, *SECCOMP},
    "no seccomp and no network namespaces": {"network-namespace", *SECCOMP},
    "no landlock and no network namespaces": {"network-namespace", *LANDLOCK},
    "no seccomp and no network namespaces and no landlock": {"network-namespace", *LANDLOCK, *SECCOMP},
    "abi 1": LANDLOCK,
    "abi 3": LANDLOCK,
    "abi 5": {"landlock", "landlock-scoped"},
}

LIMITED = ("no way to drop capabilities", "capabilities dropped in name only")


@pytest.fixture(scope="module")
def kernels():
    return json.loads(python(str(HERE / "layers_probe.py"), "this one", *LIMITED, "nothing", *KERNELS))


def abi_of(layers) -> int:
    return max((int(layer[9:]) for layer in layers if layer[9:].isdigit() and layer.startswith("landlock-")), default=0)


@pytest.mark.parametrize(("kernel", "absent"), KERNELS.items(), ids=KERNELS.keys())
def test_a_layer_that_a_kernel_lacks_is_not_claimed(kernels, kernel, absent):
    here = set(kernels["this one"]["layers"])
    abi = abi_of(here)
    expected = here - absent - ({f"landlock-{abi}"} if "landlock" in absent else set())
    if kernel.startswith("abi "):
        played = int(kernel.removeprefix("abi "))
        if played > abi:
            pytest.skip(f"this kernel has Landlock ABI {abi}")
        expected.add(f"landlock-{played}")
    assert set(kernels[kernel]["layers"]) == expected


def test_what_is_claimed_of_the_network_is_true_of_it(kernels):
    against = {"network-namespace", "landlock-no-tcp", "seccomp-unix-sockets-only"}
    for kernel, result in kernels.items():
        assert result["connected"] != bool(against & set(result["layers"])), kernel


def test_what_is_claimed_of_files_is_true_of_them(kernels):
    for kernel, result in kernels.items():
        claimed = any(layer.startswith("landlock") for layer in result["layers"])
        assert result["readable"] != claimed, kernel


def test_a_kernel_that_refuses_everything_leaves_only_what_needs_no_call(kernels):
    claims = set(kernels["nothing"]["layers"])
    # An unprivileged process has few capabilities without dropping any.
    assert claims <= {"no-core", "few-capabilities"}
    assert "no-core" in claims


@pytest.mark.parametrize("kernel", LIMITED)
def test_capabilities_that_stay_are_not_denied(kernels, kernel):
    if os.geteuid() != 0:
        pytest.skip("nothing to drop")
    assert "few-capabilities" not in kernels[kernel]["layers"]


def test_what_the_kernel_has_is_used(kernels):
    layers = set(kernels["this one"]["layers"])
    assert {"no-core", "not-dumpable", "no-new-privileges"} <= layers
    try:
        abi = min(raw_syscall("landlock_create_ruleset", None, 0, 1), 7)
    except OSError:
        abi = 0
    assert abi_of(layers) == abi
    assert ("landlock-no-tcp" in layers) == (abi >= 4)
    assert ("landlock-scoped" in layers) == (abi >= 6)


def test_a_process_with_threads_is_not_confined():
    code = """
import threading, time
from confed.attestation.tee.confinement import confine
from confed.errors import SessionError
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
try:
    confine(readable=[], writable=[], network=True)
except SessionError as error:
    print(error.got)
stop.set()
thread.join()
open(__import__("os").devnull).close()
"""
    assert python("-c", code).strip() == "2"


def test_what_holds_for_a_whole_process_can_come_late():
    code = """
import threading
from confed.attestation.tee.confinement import confine_late
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
print(*confine_late())
stop.set()
thread.join()
"""
    assert python("-c", code).split() == ["no-core", "not-dumpable"]


def test_importing_it_brings_nothing_that_starts_threads():
    code = """
import os, sys
import confed.attestation.tee.confinement
foreign = {"cryptography", "grpc", "numpy", "torch", "flwr", "rfc8785"} & set(sys.modules)
print(len(foreign), len(os.listdir("/proc/self/task")))
"""
    assert python("-c", code).split() == ["0", "1"]


def test_pythons_own_paths_leave_out_homes_data_and_the_working_directory():
    paths = default_readable()
    assert all(path.is_absolute() and path.exists() for path in paths)
    for outside in (Path.home(), Path.cwd(), Path("/tmp"), Path("/var"), Path("/etc/shadow"), Path("/root")):  # noqa: S108
        assert not any(outside.is_relative_to(path) for path in paths), outside


def run_filter(program, *, number: int, arch: int, argument: int = 0) -> int:
    """Interpret the filter, as the kernel would."""
    words = {0: number, 4: arch, 16: argument & 0xFFFFFFFF}
    accumulator, at = 0, 0
    while True:
        code, when_true, when_false, operand = program[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = words[operand]
            continue
        holds = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}[code]
        at += when_true if holds else when_false


ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, EPERM, ENOSYS, EAFNOSUPPORT, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x50061, 0x80000000
# (network, allow_exec, call, first argument) -> action
ACTIONS = [
    *((False, False, name, 0, EPERM) for name in seccomp.DENIED),
    (True, True, "ptrace", 0, EPERM),
    (False, False, "execve", 0, EPERM),
    (False, False, "execveat", 0, EPERM),
    (False, True, "execve", 0, ALLOW),
    (True, True, "clone3", 0, ENOSYS),
    (False, False, "clone", 0x3D0F00, ALLOW),  # what pthread_create passes
    (False, False, "clone", 17, ALLOW),  # what fork passes
    *((True, True, "clone", flag | 17, EPERM)
      for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)),
    (False, False, "socket", 1, ALLOW),
    *((False, False, "socket", family, EAFNOSUPPORT) for family in (0, 2, 10, 16, 17, 40)),
    (True, False, "socket", 2, ALLOW),
    (False, False, "prctl", 0, ALLOW),
    (False, False, "seccomp", 0, ALLOW),
]  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_decides_on_both_machines(machine):
    for network, allow_exec, name, argument, action in ACTIONS:
        number = NUMBERS[name][MACHINES.index(machine)]
        if number is None:
            continue
        program = seccomp.program(machine=machine, network=network, allow_exec=allow_exec)
        got = run_filter(program, number=number, arch=ARCH[machine], argument=argument)
        assert got == action, (name, argument)
        for foreign in {0x40000003, *ARCH.values()} - {ARCH[machine]}:
            assert run_filter(program, number=number, arch=foreign) == KILL


def test_the_filter_refuses_the_x32_spelling_of_calls():
    program = seccomp.program(machine="x86_64", network=True, allow_exec=True)
    assert run_filter(program, number=0x40000000 + 39, arch=ARCH["x86_64"]) == EPERM
    assert run_filter(program, number=39, arch=ARCH["x86_64"]) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_no_two_calls_share_a_number(machine):
    numbers = [pair[MACHINES.index(machine)] for pair in NUMBERS.values() if pair[MACHINES.index(machine)] is not None]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/usr/include/asm-generic/unistd.h").exists(), reason="no headers"
)
def test_the_numbers_are_those_of_the_kernels_headers():
    import re  # noqa: PLC0415

    headers = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))
    for at, header in enumerate(headers):
        known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
        for name, pair in NUMBERS.items():
            if name in known and pair[at] is not None:
                assert int(known[name]) == pair[at], name
