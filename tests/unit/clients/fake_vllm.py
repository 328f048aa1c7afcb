"""A small fake of vLLM's OpenAI server, written for these tests: what of its interface the adapter uses, and no more.

``install`` writes it as a package ``vllm`` into a folder. It reads the model's directory as vLLM would, says back the
words of a prompt one event each, and tells what it saw at ``/seen``.
"""

from __future__ import annotations

from pathlib import Path

SERVER = """
import argparse, hashlib, json, os, socketserver, sys, threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

SEEN = {"requests": [], "gone": 0, "files": {}, "environment": dict(os.environ), "arguments": sys.argv[1:]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        print(*words)

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer(200, SEEN if self.path == "/seen" else {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        SEEN["requests"].append(asked)
        prompt = asked["prompt"]
        if len(prompt) > 200:
            return self.answer(400, {"error": {"message": "the prompt is too long for it", "type": "BadRequestError"}})
        if prompt == "fail":
            return self.answer(500, {"error": {"message": "canary " + prompt}})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        words = prompt.split(" ") if prompt != "forever" else iter(lambda: "on", None)
        try:
            self.words(words, asked, prompt)
            if prompt == "break off":
                self.close_connection = True
                return
            self.event(None)
            self.wfile.write(b"0\\r\\n\\r\\n")
        except OSError:
            SEEN["gone"] += 1
            self.close_connection = True

    def words(self, words, asked, prompt):
        at = 0
        for at, word in enumerate(words, 1):
            last = asked["max_tokens"] == at and prompt != "forever"
            self.event({"text": word + " ", "finish_reason": "length" if last else None}, at)
            if last:
                return
        if prompt != "break off":
            self.event({"text": "", "finish_reason": "stop"}, at)
            self.event(None, at, usage_alone=True)

    def event(self, choice, at=0, usage_alone=False):
        usage = {"prompt_tokens": 7, "completion_tokens": at, "total_tokens": 7 + at}
        value = {"choices": [] if choice is None else [{"index": 0, "logprobs": None, **choice}], "usage": usage}
        text = "[DONE]" if choice is None and not usage_alone else json.dumps(value)
        data = f"data: {text}\\n\\n".encode()
        self.wfile.write(f"{len(data):x}\\r\\n".encode() + data + b"\\r\\n")
        self.wfile.flush()


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("uds", "model", "served-model-name", "generation-config", "uvicorn-log-level", "max-model-len", "dtype"):
        parser.add_argument("--" + name)
    for name in ("disable-uvicorn-access-log", "disable-log-stats"):
        parser.add_argument("--" + name, action="store_true", required=True)
    told = parser.parse_args()
    if told.max_model_len == "13":
        sys.exit(3)
    for file in Path(told.model).iterdir():
        SEEN["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    Server(told.uds, Handler).serve_forever()
"""


def install(folder: Path) -> None:
    """Write the package."""
    openai = folder / "vllm" / "entrypoints" / "openai"
    openai.mkdir(parents=True)
    for package in (openai, openai.parent, openai.parent.parent):
        (package / "__init__.py").touch()
    (openai / "api_server.py").write_text(SERVER)
