"""What ``confed.flower`` expects of Flower's internals, and what it promises on top of them."""

from __future__ import annotations

import inspect
import pickle
import threading
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import flwr
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.clientapp import ClientApp
from flwr.common import constant as common_constant
from flwr.proto import control_pb2, fleet_pb2, message_pb2, node_pb2, runtime_pb2
from flwr.serverapp import Grid
from flwr.supercore import constant
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable import inflatable_object, inflatable_utils
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

import confed.flower
from confed.errors import DeploymentError, NormError
from confed.flower.assignment import Assignment
from confed.flower.calls import DirectControlClient, DirectFleetClient, DirectRuntimeClient, FlowerRefusedError
from confed.flower.control import build_bundle
from confed.flower.grid import PromptGrid
from confed.flower.messages import decode_message, encode_message, use_local_task_identity
from confed.flower.runtime import RuntimeAccess
from confed.flower.serving import serve_client_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@pytest.fixture(autouse=True)
def _a_server_app_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the process of a run's ServerApp: Flower keeps that in a global, without which no message can be made."""
    for name, value in {"_run_id": 11, "_node_id": 1, "_task_id": 5}.items():
        monkeypatch.setattr(TaskIdentity, name, value)


def message_of(content: RecordDict) -> Message:
    """Return a message as Flower delivers it: with ids."""
    message = Message(content, dst_node_id=7, message_type="train", group_id="3")
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


def a_context() -> Context:
    """Return a context without anything in it."""
    return Context(run_id=11, node_id=7, node_config={}, state=RecordDict(), run_config={})


def all_records() -> RecordDict:
    """Return one record of each kind."""
    return RecordDict(
        {
            "arrays": ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 2], dtype=np.int64)]),
            "metrics": MetricRecord({"loss": 0.5, "counts": [1, 2]}),
            "config": ConfigRecord({"sealed": b"\x00\x01", "name": "x", "on": True}),
        }
    )


def test_this_is_the_flower_that_the_adapter_was_written_for() -> None:
    assert flwr.__version__.startswith("1.41")


def test_a_message_with_content_survives_encoding() -> None:
    message = message_of(all_records())

    decoded = decode_message(encode_message(message))

    assert vars(decoded.metadata) == vars(message.metadata)
    assert decoded.metadata.message_id == decoded.object_id
    assert decoded.content == message.content
    first, second = decoded.content.array_records["arrays"].to_numpy_ndarrays()
    assert (first.dtype, second.dtype) == (np.float32, np.int64)


def test_an_error_reply_survives_encoding() -> None:
    request = message_of(RecordDict())
    reply = Message(Error(2, "norm"), reply_to=request)

    decoded = decode_message(encode_message(reply))

    assert (decoded.error.code, decoded.error.reason) == (2, "norm")
    assert decoded.metadata.reply_to_message_id == request.metadata.message_id
    assert not decoded.has_content()


@pytest.mark.parametrize(
    ("client", "methods"),
    [
        (
            RuntimeHttpClient,
            "AcquireTask PullMessages PushMessages PullObject PushObject ConfirmMessageReceived GetNodes",
        ),
        (
            FleetHttpClient,
            (
                "ActivateNode DeactivateNode SendNodeHeartbeat GetRun PullMessages PushMessages PullObject PushObject "
                "ConfirmMessageReceived"
            ),
        ),
        (ControlHttpClient, "ListNodes RegisterNode StartRun ListRuns"),
    ],
)
def test_the_clients_have_the_calls_that_are_made(client: type[ProtobufClient], methods: str) -> None:
    assert issubclass(client, ProtobufClient)
    for method in methods.split():
        assert list(inspect.signature(getattr(client, method)).parameters) == ["self", "request"]


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            ProtobufClient.from_server_address,
            "server_address insecure root_certificates interceptors retry_invoker",
        ),
        (SuperExecAuthHttpInterceptor, "master_secret protected_methods"),
        (NodeAuthHttpInterceptor, "private_key public_key"),
        (inflatable_object.get_object_tree, "obj"),
        (inflatable_object.get_all_nested_objects, "obj"),
        (remove_content_from_message, "message"),
        (build_fab_from_files, "files"),
        (
            inflatable_utils.pull_and_inflate_object_from_tree,
            (
                "object_tree pull_object_fn confirm_object_received_fn return_type max_concurrent_pulls max_time "
                "max_tries_per_object initial_backoff backoff_cap"
            ),
        ),
        (
            inflatable_utils.push_objects,
            "objects push_object_fn object_ids_to_push keep_objects max_concurrent_pushes",
        ),
    ],
)
def test_functions_take_the_arguments_that_are_given(function: Callable[..., object], names: str) -> None:
    assert list(inspect.signature(function).parameters) == names.split()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (runtime_pb2.AcquireTaskRequest, "supported_task_types"),
        (runtime_pb2.AcquireTaskResponse, "token task"),
        (runtime_pb2.PullAppMessagesResponse, "messages_list message_object_trees"),
        (fleet_pb2.PullMessagesResponse, "messages_list message_object_trees"),
        (fleet_pb2.PushMessagesRequest, "node messages_list message_object_trees clientapp_runtime_list"),
        (fleet_pb2.PushMessagesResponse, "objects_to_push session_id"),
        (message_pb2.ObjectTree, "object_id children"),
        (control_pb2.StartRunRequest, "fab override_config"),
        (control_pb2.RegisterNodeRequest, "public_key name"),
        (control_pb2.ListRunsResponse, "run_dict"),
        (node_pb2.NodeInfo, "node_id status name"),
    ],
)
def test_wire_messages_have_the_fields_that_are_used(kind: type[object], fields: str) -> None:
    assert set(fields.split()) <= set(kind.DESCRIPTOR.fields_by_name)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("direct", "plain"),
    [
        (DirectRuntimeClient, RuntimeHttpClient),
        (DirectFleetClient, FleetHttpClient),
        (DirectControlClient, ControlHttpClient),
    ],
)
def test_a_direct_client_is_made_like_flowers_own_but_for_the_environment(
    direct: type[ProtobufClient], plain: type[ProtobufClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect.signature(direct) == inspect.signature(plain)
    with plain("https://127.0.0.1:1/") as client:
        expected = vars(client)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")

    with direct("https://127.0.0.1:1/") as client:
        made = vars(client)

    assert made.keys() == expected.keys()
    assert made["_base_url"] == expected["_base_url"]
    for name in ("timeout", "follow_redirects"):
        assert getattr(made["_client"], name) == getattr(expected["_client"], name)
    assert not made["_client"].trust_env


def test_a_local_process_makes_messages_once_it_has_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    with pytest.raises(RuntimeError):
        message_of(RecordDict())

    use_local_task_identity(23, 9)

    metadata = decode_message(encode_message(message_of(RecordDict()))).metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (23, 9, 7)


def test_constants_are_what_the_adapter_assumes() -> None:
    assert constant.TaskType.SERVER_APP == "flwr-serverapp"
    assert constant.NodeStatus.ONLINE == "online"
    assert (common_constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, common_constant.HEARTBEAT_DEFAULT_INTERVAL) == (
        2,
        30,
    )


def test_a_message_keeps_its_id_where_the_adapter_writes_it() -> None:
    assert "_message_id" in vars(message_of(RecordDict()).metadata)


def test_the_grid_of_a_server_app_has_what_the_prompt_grid_uses() -> None:
    assert isinstance(inspect.getattr_static(HttpGrid, "_runtime_client"), property)
    grid = HttpGrid("127.0.0.1:1", token="t")
    assert grid.node.node_id == 1
    assert set(Grid.__abstractmethods__) <= set(vars(PromptGrid))


class FakeConnection:
    """A connection with messages in it, which stops the host when they are used up."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self.waiting = list(messages)
        self.replies: list[Message] = []
        self.stop = threading.Event()

    def pull(self) -> Assignment | None:
        """Return the next message."""
        if not self.waiting:
            self.stop.set()
            return None
        return Assignment(message=self.waiting.pop(0), context=a_context(), started_at=0.0)

    def push(self, assignment: Assignment, reply: Message) -> None:
        """Keep the reply."""
        assert reply.metadata.reply_to_message_id == assignment.message.metadata.message_id
        self.replies.append(reply)


class ForeignError(Exception):
    """An error of another library, whose ``code`` is not one of ours."""

    code = "SECRET: row 17"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("row 17 holds a name"), "client-app-failed"),
        (ForeignError("row 17"), "client-app-failed"),
        (NormError("update", expected="at most 1", got=17), "norm"),
    ],
)
def test_an_exception_leaves_as_a_code_only(error: Exception, reason: str) -> None:
    app = ClientApp()

    @app.train()
    def train(_: Message, __: Context) -> Message:
        raise error

    connection = FakeConnection([message_of(all_records())])

    assert serve_client_app(app, connection, connection.stop, poll_interval_s=0.001) == 1

    [reply] = connection.replies
    assert (reply.error.code, reply.error.reason) == (2, reason)


def test_a_message_in_flight_is_answered_before_the_host_stops() -> None:
    connection = FakeConnection([message_of(all_records()), message_of(all_records())])

    def app(message: Message, _: Context) -> Message:
        connection.stop.set()
        return Message(RecordDict(), reply_to=message)

    assert serve_client_app(app, connection, connection.stop) == 1
    assert len(connection.replies) == len(connection.waiting) == 1


def test_a_bundle_is_the_same_bytes_for_the_same_files_and_holds_them(tmp_path: Path) -> None:
    (tmp_path / "server_app.py").write_text("app = None\n")
    config = {"rounds": 2, "rate": 0.5}

    first = build_bundle(tmp_path, server_app="server_app:app", run_config=config)

    assert first == build_bundle(tmp_path, server_app="server_app:app", run_config=config)
    assert {"server_app.py", "pyproject.toml"} <= set(zipfile.ZipFile(BytesIO(first)).namelist())


def test_an_empty_folder_makes_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError):
        build_bundle(tmp_path, server_app="server_app:app", run_config={})


def test_secrets_do_not_show_in_what_is_printed_and_errors_travel() -> None:
    access = RuntimeAccess(address="127.0.0.1:1", root_certificates=b"pem", superexec_secret=b"hush")

    assert "hush" not in repr(access)
    assert pickle.loads(pickle.dumps(access)) == access  # noqa: S301
    error = pickle.loads(pickle.dumps(FlowerRefusedError(401)))  # noqa: S301
    assert isinstance(error, FlowerRefusedError)
    assert error.status == 401


def test_no_helper_of_flower_that_exits_or_retries_for_ever_is_used() -> None:
    source = "".join(path.read_text() for path in Path(confed.flower.__path__[0]).glob("*.py"))

    assert "def serve_client_app" in source
    for name in ("flwr_exit", "make_simple_http_retry_invoker", "install_from_fab", "HeartbeatSender(", "os.kill"):
        assert name not in source
