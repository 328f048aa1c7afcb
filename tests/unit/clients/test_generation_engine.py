"""Text generation: in a batch as alone, streams that join and leave, and what is kept from one request for another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_world import asked, byte_tokenizer, hub_directory, said
from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

from clients.engines.batching import Batched, BatchFailedError
from clients.engines.decoding import Reading
from clients.engines.generation import TextGeneration
from clients.engines.prefixes import Prefixes
from clients.engines.text import TextStream
from confed.errors import LanguageModelError
from confed.inference.engine import InvalidRequestError, answering_for
from confed.model.hub import read_directory

PROMPTS = ["a", "hello world, this is", "once upon a time there was", "xyz", "What? No.", "short"]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    return read_directory(hub_directory(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def alone(arrays: Arrays) -> TextGeneration:
    return TextGeneration(arrays, {})


@pytest.fixture
def batched(arrays: Arrays) -> TextGeneration:
    return TextGeneration(arrays, {"batch": 4})


def batch_of(engine: TextGeneration) -> Batched:
    assert isinstance(engine._decoder, Batched)
    return engine._decoder


def emptied(batch: Batched) -> bool:
    """Whether the batch is empty soon: its thread notices at the next token who has gone."""
    waited = threading.Event()
    return any(batch.held == 0 or waited.wait(0.005) for _ in range(2000))


# A batch.


def test_greedy_text_in_a_batch_is_the_text_of_each_alone(alone: TextGeneration, batched: TextGeneration) -> None:
    lengths = [20, 1, 40, 5, 30, 60]  # some end early, so places change hands
    expected = [said(alone, prompt, max_tokens=most) for prompt, most in zip(PROMPTS, lengths, strict=True)]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        for _ in range(3):
            found = pool.map(
                lambda pair: said(batched, pair[0], max_tokens=pair[1]), zip(PROMPTS, lengths, strict=True)
            )
            assert list(found) == expected
    assert batch_of(batched).largest == 4
    assert emptied(batch_of(batched))


def test_a_seed_draws_alike_alone_and_beside_others(alone: TextGeneration, batched: TextGeneration) -> None:
    expected = said(alone, "a", temperature=1.0, top_p=0.9, seed=7)
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(said, batched, prompt, max_tokens=60) for prompt in PROMPTS[1:3]]
        assert said(batched, "a", temperature=1.0, top_p=0.9, seed=7) == expected
        assert all(other.result() for other in others)
    assert said(batched, "a", temperature=1.0, top_p=0.9, seed=8) != expected


def test_pieces_come_while_others_go_on(batched: TextGeneration) -> None:
    streams = [batched.generate(prompt, asked(max_tokens=30)) for prompt in PROMPTS[:3]]
    firsts = [next(stream) for stream in streams]  # none has to end for another to begin
    assert [first.finish for first in firsts] == [None] * 3
    ends = [list(stream)[-1] for stream in streams]
    assert [(end.finish, end.tokens) for end in ends] == [("length", 30)] * 3


def test_who_goes_away_frees_a_place_for_who_waits(arrays: Arrays, alone: TextGeneration) -> None:
    engine = TextGeneration(arrays, {"batch": 2})
    batch = batch_of(engine)
    held = threading.Event()
    stepped = batch._slots.step

    steps = list[int]()

    def slow(*given: Any) -> Any:
        steps.append(len(batch._running))
        if len(batch._running) == 2:
            held.wait(20)
        return stepped(*given)

    batch._slots.step = slow  # type: ignore[method-assign]
    streams = [engine.generate("a", asked(max_tokens=60)) for _ in range(2)]
    for stream in streams:
        next(stream)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(said, engine, "xyz", max_tokens=3)
        while batch.held < 3:
            pass
        for stream in streams:
            with closing(stream):  # type: ignore[type-var]
                pass
        held.set()
        assert waiting.result(20) == said(alone, "xyz", max_tokens=3)
    assert len(steps) < 10  # not after the 60 tokens that nobody reads
    assert emptied(batch)


def test_a_batch_that_fails_is_told_to_all_in_it_and_the_next_one_runs(
    alone: TextGeneration, batched: TextGeneration
) -> None:
    batch = batch_of(batched)

    def broken(*_: Any) -> Any:
        raise RuntimeError("canary")

    batch._slots.step = broken  # type: ignore[method-assign]
    with pytest.raises(BatchFailedError) as told:
        said(batched, "a")
    assert "canary" not in str(told.value)
    assert said(batched, "a") == said(alone, "a")
    batch._reader.begin = broken  # type: ignore[method-assign]
    with pytest.raises(BatchFailedError):
        said(batched, "a")
    assert emptied(batch)


# A long prompt, read in pieces.

LONG = "It was a dark night in the north of the house, and nobody was awake."
DRAWS: dict[str, dict[str, Any]] = {
    "the likeliest": {"temperature": 0},
    "a draw by a seed": {"temperature": 1.0, "top_p": 0.9, "seed": 5},
}


@pytest.mark.parametrize("how", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("chunk", [1, 7, len(LONG)])
def test_a_prompt_read_in_pieces_gives_the_tokens_of_one_read_whole(
    arrays: Arrays, alone: TextGeneration, chunk: int, how: dict[str, Any]
) -> None:
    engine = TextGeneration(arrays, {"batch": 3, "prefill-chunk": chunk})
    with ThreadPoolExecutor(3) as pool:
        asked_for = [LONG, "short", LONG[5:]]
        found = list(pool.map(lambda prompt: said(engine, prompt, **how), asked_for))
    assert found == [said(alone, prompt, **how) for prompt in asked_for]
    assert emptied(batch_of(engine))


class Watched:
    """What a batch does, in order: pieces of prompts that are read, by their lengths, and steps."""

    def __init__(self, batch: Batched, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[int | str] = []
        self.before_piece = lambda: None
        read, stepped = Reading.read, batch._slots.step

        def reading(each: Reading, most: int) -> Any:
            self.before_piece()
            before = each.count
            found = read(each, most)
            self.done.append(each.count - before)
            return found

        def stepping(*given: Any) -> Any:
            self.done.append("step")
            return stepped(*given)

        monkeypatch.setattr(Reading, "read", reading)
        batch._slots.step = stepping  # type: ignore[method-assign]

    @property
    def pieces(self) -> list[int]:
        return [entry for entry in self.done if isinstance(entry, int)]


def test_running_answers_go_on_between_the_pieces_of_a_long_prompt(
    arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TextGeneration(arrays, {"batch": 2, "prefill-chunk": 10})
    running = engine.generate("a", asked(max_tokens=80))
    next(running)
    watched = Watched(batch_of(engine), monkeypatch)
    assert said(engine, LONG, max_tokens=2)
    between = watched.done[: watched.done.index(len(LONG) % 10) + 1]
    pieces = [at for at, entry in enumerate(between) if entry != "step"]
    assert [between[at] for at in pieces] == [10] * (len(LONG) // 10) + [len(LONG) % 10]
    assert all(after - before == 2 for before, after in pairwise(pieces))  # one step in between
    list(running)


def test_a_short_prompt_does_not_wait_for_a_long_one(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TextGeneration(arrays, {"batch": 2, "prefill-chunk": 4})
    batch, both, pause = batch_of(engine), threading.Event(), threading.Event()
    watched = Watched(batch, monkeypatch)

    def until_both_are_there() -> None:
        while not both.is_set() and batch.held < 2:
            pause.wait(0.01)
        both.set()

    watched.before_piece = until_both_are_there
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(said, engine, LONG, max_tokens=1)
        assert pool.submit(said, engine, "abcdef", max_tokens=1).result(20) is not None
        assert not long.done() or watched.pieces.index(2) < len(watched.pieces) - 1
        long.result(20)


def test_who_goes_away_while_its_prompt_is_read_frees_its_place_and_keeps_what_was_read(
    arrays: Arrays, alone: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TextGeneration(arrays, {"batch": 2, "prefill-chunk": 10, "prefix-cache": 400})
    batch = batch_of(engine)
    watched, left, held = Watched(batch, monkeypatch), threading.Event(), threading.Event()
    watched.before_piece = lambda: len(watched.pieces) == 3 and held.wait(20)  # type: ignore[assignment,return-value]

    def ask() -> str:
        with answering_for(left.is_set):
            return said(engine, LONG, cache_salt="one", max_tokens=2)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask)
        while len(watched.pieces) < 3:
            pass
        others = [pool.submit(ask) for _ in range(2)]  # of whom one waits for a place
        while batch.held < 3:
            pass
        left.set()
        held.set()
        assert [each.result(20) for each in (first, *others)] == [""] * 3
    assert emptied(batch)
    assert watched.pieces == [10] * 4  # no further piece after it had gone, and none of the others'
    assert said(engine, LONG, cache_salt="two", max_tokens=4) == said(alone, LONG, max_tokens=4)
    assert found(engine) == 0
    assert said(engine, LONG, cache_salt="one", max_tokens=4) == said(alone, LONG, max_tokens=4)
    assert found(engine) == 40


def tiny(kind: str) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
    if kind == "a window":
        more: dict[str, Any] = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
        return MistralForCausalLM(MistralConfig(**sizes, **more, num_hidden_layers=1, sliding_window=8))
    return BloomForCausalLM(BloomConfig(**sizes, n_layer=1, n_head=4))


@pytest.mark.parametrize("kind", ["a window", "positions of its own"])
@pytest.mark.parametrize("setting", ["batch", "prefix-cache"])
def test_a_model_with_another_cache_is_refused_by_name(kind: str, setting: str, tmp_path: Path) -> None:
    tiny(kind).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    opened = read_directory(tmp_path)
    with pytest.raises(LanguageModelError) as refused:
        TextGeneration(opened, {setting: 100})
    assert refused.value.field == f"settings.{setting}"
    assert said(TextGeneration(opened, {}), "a", max_tokens=2)


@pytest.mark.parametrize(
    "changes", [{"batch": 0}, {"batch": True}, {"batch": "4"}, {"prefix-cache": -1}, {"prefill-chunk": 0}]
)
def test_a_setting_that_is_no_count_is_refused(arrays: Arrays, changes: dict[str, Any]) -> None:
    with pytest.raises(LanguageModelError):
        TextGeneration(arrays, changes)


def test_a_model_that_minds_its_neighbours_is_refused(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients.engines import slots  # noqa: PLC0415

    monkeypatch.setattr(
        slots.torch, "finfo", lambda _dtype: type("None", (), {"min": 0.0})
    )  # a mask that hides nothing
    with pytest.raises(LanguageModelError):
        TextGeneration(arrays, {"batch": 2})


@pytest.mark.parametrize("batch", [1, 4])
def test_a_prompt_that_does_not_fit_is_refused(arrays: Arrays, batch: int) -> None:
    engine = TextGeneration(arrays, {"batch": batch})
    for prompt in ("", "x" * 96):
        with pytest.raises(InvalidRequestError):
            said(engine, prompt)


# What is kept.


def found(engine: TextGeneration) -> int:
    prefixes: Prefixes = engine._decoder._reader._prefixes  # type: ignore[attr-defined]
    return prefixes.found_tokens


TURN = "The north side of the house is where"


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_kept_of_a_prompt_serves_its_own_tenant_alone(
    arrays: Arrays, alone: TextGeneration, batch: int
) -> None:
    engine = TextGeneration(arrays, {"batch": batch, "prefix-cache": 400})
    answer = said(engine, TURN, cache_salt="one", max_tokens=8)
    settled(engine, batch)
    assert found(engine) == 0
    for salt in ("two", None):
        assert said(engine, TURN, cache_salt=salt, max_tokens=8) == answer
        settled(engine, batch)
        assert found(engine) == 0
    followed = TURN + answer + " moss"
    assert said(engine, followed, cache_salt="one") == said(alone, followed)
    assert found(engine) >= len(TURN)


def settled(engine: TextGeneration, batch: int) -> None:
    """A batch keeps a prompt when its request leaves, just after the last token has been told."""
    assert batch == 1 or emptied(batch_of(engine))


def test_a_request_without_a_tenant_leaves_nothing(arrays: Arrays) -> None:
    engine = TextGeneration(arrays, {"prefix-cache": 400})
    said(engine, TURN)
    said(engine, TURN)
    assert (found(engine), engine._decoder._reader._prefixes._size) == (0, 0)  # type: ignore[attr-defined]


class Layers:
    """A cache of one layer, of so many tokens."""

    def __init__(self, count: int) -> None:
        import torch  # noqa: PLC0415

        keys = torch.zeros((1, 1, count, 2))
        self.layers = [type("Layer", (), {"keys": keys, "values": keys})()]


def test_what_was_used_longest_ago_makes_room() -> None:
    kept = Prefixes(40)
    texts = {salt: [number] * 16 for number, salt in enumerate("abc")}
    for salt in "ab":
        kept.keep(salt, texts[salt], Layers(16))
    assert kept.cache_for("a", [*texts["a"], 9]).get_seq_length() == 16
    kept.keep("c", texts["c"], Layers(16))
    assert [kept.cache_for(salt, [*texts[salt], 9]) is None for salt in "abc"] == [False, True, False]
    assert kept._size == 32
    kept.keep("a", [*texts["a"], 0, 0], Layers(18))  # in place of its own beginning
    assert kept._size == 34
    kept.keep("d", [3] * 41, Layers(41))  # more than there is room for
    assert kept.cache_for("d", [3] * 41) is None


# Text.


def pieces_of(tokens: list[int], stops: tuple[str, ...]) -> Iterator[str]:
    stream = TextStream(DECODE, stops=stops)
    for token in tokens:
        yield stream.add(token)
        if stream.stopped:
            return
    yield stream.rest()


TOKENIZER = byte_tokenizer()


def DECODE(tokens: list[int]) -> str:  # noqa: N802 (a constant of this module)
    return str(TOKENIZER.decode(tokens, skip_special_tokens=True))


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=12), noise=st.lists(st.integers(1, 256), max_size=8), stop=st.text(min_size=1, max_size=3))
def test_pieces_are_the_whole_text_up_to_the_first_stop_word(text: str, noise: list[int], stop: str) -> None:
    tokens = [*TOKENIZER(text)["input_ids"], *noise]
    whole = DECODE(tokens)
    assert "".join(pieces_of(tokens, ())) == whole
    assert "".join(pieces_of(tokens, (stop,))) == whole.partition(stop)[0]


def test_no_piece_ends_in_half_a_character() -> None:
    tokens = TOKENIZER("grün und schön")["input_ids"]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces_of(tokens, ()))
