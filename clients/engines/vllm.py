"""A language model served by vLLM, which runs as a child in the same TEE and is reached over a Unix socket there.

1. The opened model becomes files in memory (``clients.engines.memory_files``): no disk holds a byte of it.
2. vLLM is started on them, tethered to this process, without a log, a report home or a look at a hub.
3. A request is one streamed completion of its OpenAI interface; who goes away closes that connection, which ends the
   generation there. vLLM's prefix cache is salted with the tenant's salt, and with a new one where there is none.

Needs a serving file with ``[child]``, which lets the TEE run another program and gives it a folder in memory. Settings:
``max-new-tokens`` (where a request says nothing, default 256), ``start-timeout-s`` (default 900), and vLLM's own
``max-model-len``, ``max-num-seqs``, ``dtype``, ``gpu-memory-utilization``, ``tensor-parallel-size``.

Not tested here: vLLM itself; the tests speak to a small fake of its interface.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (completions, ``cache_salt``).
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from numpy.typing import NDArray

from clients.engines import child
from clients.engines.chat import chat_prompt, chat_template
from clients.engines.memory_files import model_files, require_memory
from clients.tasks.language import tokenizer_of
from confed.errors import DeploymentError, LanguageModelError, MissingPackageError
from confed.inference.engine import GenerationOptions, InvalidRequestError, Piece
from confed.simulation.tethered import tether

Arrays = Mapping[str, NDArray[Any]]
_MODULE = "vllm.entrypoints.openai.api_server"
_NAME = "model"
_SOCKET = "s"
_FLAGS = {
    "max-model-len": int,
    "max-num-seqs": int,
    "dtype": str,
    "gpu-memory-utilization": float,
    "tensor-parallel-size": int,
}
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "LANG")
_QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_POLL_S = 0.05
_END_S = 10.0
_OK, _BAD_REQUEST = 200, (400, 404, 422)


class VllmFailedError(Exception):
    """vLLM ended, refused or broke off; its words are not told, they may quote a request."""


class Vllm:
    """The served model.

    Raises:
        MissingPackageError: vLLM is not in this image.
        SessionError: no folder in memory, or a machine that swaps.
        LanguageModelError: no language model, or a setting of another type.
        DeploymentError: vLLM did not start.
    """

    def __init__(self, arrays: Arrays, settings: Mapping[str, Any]) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise MissingPackageError("vllm", expected="in this image (pip install vllm)", got="none")
        self._tokenizer = tokenizer_of(arrays)
        self._tokenizer.chat_template = chat_template(arrays)
        self._new_tokens = int(settings.get("max-new-tokens", 256))
        flags = _flags(settings)
        require_memory(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix="vllm-"))
        self._child = _start(self._folder, model_files(arrays), flags)
        atexit.register(self.close)
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self._folder / _SOCKET), limits=httpx.Limits(max_connections=None)),
            base_url="http://vllm",
            timeout=httpx.Timeout(None, connect=10.0),
        )
        self._wait(float(settings.get("start-timeout-s", 900)))

    def close(self) -> None:
        """End vLLM, and with it what it holds of the model."""
        atexit.unregister(self.close)
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._http.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # links, its socket, its caches

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text that stands for messages of a chat, by the model's own template.

        Raises:
            InvalidRequestError: there is no template, or it refuses these messages.
        """
        return chat_prompt(self._tokenizer, messages)

    def generate(self, prompt: str, options: GenerationOptions) -> Iterator[Piece]:
        """Yield the text that follows, piece by piece.

        Raises:
            InvalidRequestError: vLLM refuses the prompt: it does not fit the context.
            VllmFailedError: vLLM failed.
        """
        finished = False
        if self._child.poll() is not None:
            raise VllmFailedError("it has ended")
        try:
            with self._http.stream("POST", "/v1/completions", json=self._request(prompt, options)) as response:
                _require_taken(response)
                for event in _events(response):
                    piece = _piece(event)
                    if piece is not None and not finished:
                        finished = piece.finish is not None
                        yield piece
        except httpx.HTTPError as error:
            raise VllmFailedError(type(error).__name__) from error
        if not finished:
            raise VllmFailedError("no end")

    def _request(self, prompt: str, options: GenerationOptions) -> dict[str, Any]:
        value: dict[str, Any] = {
            "model": _NAME,
            "prompt": prompt,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": options.max_tokens or self._new_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop),
            "add_special_tokens": options.special_tokens,
            "cache_salt": options.cache_salt or secrets.token_hex(32),
        }
        return value if options.seed is None else {**value, "seed": options.seed}

    def _wait(self, timeout_s: float) -> None:
        """Wait until vLLM says that it is ready."""
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends and self._child.poll() is None:
            if _listens(self._folder / _SOCKET) and self._http.get("/health").status_code == _OK:
                return
            time.sleep(_POLL_S)
        code = self._child.poll()
        self.close()
        raise DeploymentError("vllm", expected=f"to start within {timeout_s:.0f} s", got=f"exit code {code}")


def _listens(path: Path) -> bool:
    """Whether somebody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        return caller.connect_ex(str(path)) == 0


def _start(folder: Path, files: Mapping[str, int], flags: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start vLLM on files in memory (rules 1 and 2); what it prints goes nowhere, as it may quote a request."""
    named = [f"{name}={descriptor}" for name, descriptor in files.items()]
    command = [sys.executable, "-m", _MODULE, "--uds", str(folder / _SOCKET), "--model", str(folder / "model"), *flags]
    paths = {name: str(folder) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT")}
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment = {**passed_on, **paths, **_QUIET, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        return subprocess.Popen(  # noqa: S603
            tether([sys.executable, "-I", "-S", child.__file__, str(folder / "model"), *named, "--", *command]),
            pass_fds=tuple(files.values()),
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise DeploymentError("vllm", expected="another program may run ([child])", got=type(error).__name__) from error
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _flags(settings: Mapping[str, Any]) -> list[str]:
    flags = ["--served-model-name", _NAME, "--generation-config", "vllm", "--uvicorn-log-level", "critical"]
    flags += ["--disable-uvicorn-access-log", "--disable-log-stats"]
    for name, kind in _FLAGS.items():
        if name not in settings:
            continue
        value = settings[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is str and not str(value).isalnum()):
            raise LanguageModelError(f"settings.{name}", expected=kind.__name__, got=str(value)[:20])
        flags += [f"--{name}", str(value)]
    return flags


def _require_taken(response: httpx.Response) -> None:
    if response.status_code == _OK:
        return
    data = response.read()
    if response.status_code not in _BAD_REQUEST:
        raise VllmFailedError(str(response.status_code))
    try:
        value = json.loads(data)
        reason = str(value.get("error", value)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "the model does not take this request"
    raise InvalidRequestError(400, reason[:500])


def _events(response: httpx.Response) -> Iterator[Any]:
    """Yield the values of a stream of server-sent events.

    Raises:
        VllmFailedError: the stream ends before its end, or an event is none.
    """
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            yield json.loads(data)
        except ValueError as error:
            raise VllmFailedError("no JSON") from error
    raise VllmFailedError("no end")


def _piece(event: Any) -> Piece | None:
    """Return the piece of an event; ``None`` for the one that has the usage alone.

    Raises:
        VllmFailedError: an event that is no piece of a completion.
    """
    try:
        if not event["choices"]:
            return None
        (choice,), usage = event["choices"], event["usage"]
        finish = choice["finish_reason"]
        if finish not in (None, "stop", "length"):
            raise VllmFailedError("another end")
        return Piece(
            text=str(choice["text"]),
            finish=finish,
            prompt_tokens=int(usage["prompt_tokens"]),
            tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VllmFailedError("another event") from error
