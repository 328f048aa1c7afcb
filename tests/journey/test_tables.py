"""Sealed tables on the road: opened, checked, cleaned and labelled in client TEEs, and what must not leave them.

One round through the mod, in which ``west`` has sealed a table that breaks the contract; then each wrong turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from road import SITES, Land, Road
from test_no_plaintext import be_a_server_app_process, context_of, encodings, files_under, found, told

from confed import canonical
from confed.client import confidential, current, site_data, site_table
from confed.data.arrays import features_of, labels_of
from confed.data.checking import Finding
from confed.data.croissant import About
from confed.data.findings import open_findings, topic
from confed.data.owner import seal_tables, tables_of
from confed.errors import (
    ConfedError,
    PrivacyBudgetError,
    PurposeError,
    SignatureError,
    TicketError,
    error_for,
)
from confed.flower.messages import encode_message
from confed.journey import Kind, Purpose
from confed.keybroker.identity import OwnerHome
from confed.keybroker.statistics import StatisticsPermit, StatisticsRelease, StatisticsRequest
from confed.manifest import FILES, SealedReference
from confed.preparation.contract import Contract
from confed.preparation.pipeline import Pipeline
from confed.preparation.statistics import Query, StatisticsTerms
from confed.preparation.terms import PreparationTerms
from confed.sealing.container import Container
from confed.sealing.derivation import container_key
from confed.statement import Signed, sign, verify

CANARY = "canary-patient-4711"
CANARY_NUMBER = 918273.6450912
CANARIES = {"text": encodings(CANARY.encode()), "number": [*encodings(np.float64(CANARY_NUMBER).tobytes()), b"918273"]}

CONTRACT = Contract.from_document(
    {
        "name": "road",
        "rows": {"least": 2, "most": 100},
        "others": "ignore",
        "columns": {
            "age": {"type": "float64", "least": 0.0, "most": 120.0},
            "kind": {"type": "text", "choices": ["well", "ill"]},
            "name": {"type": "text"},
            "window": {"type": "list<float64, 2>", "most": 9.0},
            "scan.dose": {"type": "float64", "nullable": True},
        },
    }
)
PIPELINE = Pipeline.from_document(
    {
        "name": "road",
        "steps": [
            {"step": "filter", "where": {"column": "age", "operator": ">", "value": 1.0}},
            {"step": "standardise", "columns": {"age": [40.0, 20.0]}},
        ],
        "labels": {
            "column": "label",
            "classes": ["well", "ill"],
            "functions": [{"name": "kind", "column": "kind"}],
        },
    }
)
BROKEN = (
    Finding(column="age", check="most", count=1),
    Finding(column="age", check="null", count=1),
    Finding(column="kind", check="choices", count=2),
    Finding(column="scan.dose", check="type", count=1),
    Finding(column="window", check="items", count=1),
)


def table_of(site: str) -> pa.Table:
    """A site's table; what ``west`` has breaks the contract."""
    if site == "west":
        kinds = ["well", CANARY, CANARY]
        nested = {"window": [[1.0, 2.0], [CANARY_NUMBER], None], "scan": [{"dose": CANARY}] * 3}
        return pa.table({"age": [30.0, CANARY_NUMBER, None], "kind": kinds, "name": ["x", CANARY, "y"], **nested})
    ages = [0.0, 20.0, 60.0 + SITES.index(site)]
    nested = {
        "window": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "scan": [{"dose": 1.0, "by": CANARY}, {"dose": 0.5}, {"dose": 2.0}],
    }
    other = {"name": [CANARY] * 3, "other": [CANARY_NUMBER] * 3}
    return pa.table({"age": ages, "kind": ["well", "ill", "well"], **other, **nested})


@dataclasses.dataclass(kw_only=True)
class TableLand(Land):
    """A land whose sites sealed tables: what ``table`` returns for each."""

    pipeline_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    table: Callable[[str], pa.Table] = table_of
    contract: Contract = CONTRACT
    pipeline: Pipeline = PIPELINE
    statistics: StatisticsTerms | None = None

    def _sealed(self, homes: Mapping[str, OwnerHome], name: str, kind: Kind, arrays: Any) -> SealedReference:
        if kind is not Kind.DATASET:
            return super()._sealed(homes, name, kind, arrays)
        # An owner's own check would have refused what west seals here.
        sealed = seal_tables(
            tables_of(self.table(name), what=name),
            home=homes[name],
            contract=self.contract,
            pipeline=self.pipeline_of.get(name, self.pipeline.digest),
            about=About(name=name, description="a", licence="b", derived_from=("c",), published="2026-01-01"),
            floors=self._floors_of(homes, name),
            path=self.folder / f"{name}.sealed",
            description_path=self.folder / f"{name}.json",
        )
        self.keys[name] = homes[name].key(sealed.reference.key_id)
        self.files[sealed.reference.digest] = (self.folder / f"{name}.sealed").read_bytes()
        self.files[sealed.description] = (self.folder / f"{name}.json").read_bytes()
        self.descriptions = {**getattr(self, "descriptions", {}), name: sealed.description}
        return sealed.reference

    def _manifest(self, homes: Any, references: Any) -> Any:
        self._data = {
            "data_source": FILES,
            "preparation": PreparationTerms(
                contract=self.contract,
                pipeline=self.pipeline,
                statistics=self.statistics,
                descriptions=self.descriptions,
            ),
        }
        return super()._manifest(homes, references)


app = ClientApp(mods=[confidential])
seen: dict[str, Any] = {}


@app.train()
def train(message: Message, context: Context) -> Message:
    site = SITES[int(context.node_config["partition-id"])]
    table, arrays = site_table(context), site_data(context)
    labels = labels_of(arrays, "label", classes=1 if site == "south" else 2)
    features = features_of(arrays, ["age"])
    seen[site] = {"columns": table.column_names, "labels": labels.tolist(), "features": features.tolist()}
    seen[site] |= {"windows": arrays["window"].tolist(), "doses": table["scan.dose"].to_pylist()}
    weights = message.content["arrays"]
    trained = {name: Array(array.numpy()) for name, array in weights.items()}  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
    metrics = MetricRecord({"loss": 0.5, "num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


@dataclasses.dataclass
class Walked:
    road: Road
    replies: dict[str, Message]
    everything: dict[str, bytes]


@pytest.fixture(scope="module")
def walked(quick_disk: Path) -> Iterator[Walked]:
    folder = Path(tempfile.mkdtemp(dir=quick_disk))
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(logged):
        be_a_server_app_process(patch)
        logging.getLogger().addHandler(handler)
        land = TableLand(folder=folder / "land")
        # What was sealed is with the courier; the owner's plain table was never on a disk.
        with Road(land, folder / "road") as road:
            patch.setattr(current, "_session", road.session(*SITES))
            aggregator = road.aggregator()
            aggregator.open(1)
            replies: dict[str, Message] = {}
            everything: dict[str, bytes] = {}
            for site in SITES:
                replies[site] = app(told("train", 1), context_of(site))
                everything[f"reply of {site}"] = encode_message(replies[site])
                if not replies[site].has_error():
                    digest = str(replies[site].content["confed"]["digest"])  # pyright: ignore[reportIndexIssue, reportArgumentType]
                    aggregator.governor.submit(site=site, digest=digest)
            aggregator.close_round({site: reply.error.reason for site, reply in replies.items() if reply.has_error()})
            logging.getLogger().removeHandler(handler)
            everything |= files_under(folder) | {"log": logged.getvalue().encode()}
            yield Walked(road, replies, everything)


def test_an_app_sees_the_cleaned_and_labelled_table(walked: Walked) -> None:
    columns = ["age", "kind", "name", "window", "scan.dose", "label", "label_confidence"]
    assert seen["east"]["columns"] == columns
    assert (seen["east"]["windows"], seen["east"]["doses"]) == ([[3.0, 4.0], [5.0, 6.0]], [0.5, 2.0])
    assert seen["east"]["labels"] == [1, 0]
    assert seen["north"]["features"] == [[-1.0], [pytest.approx(1.05)]]


def test_a_broken_contract_ends_the_site_s_step_by_a_code(walked: Walked) -> None:
    codes = {site: reply.error.reason for site, reply in walked.replies.items() if reply.has_error()}
    assert codes == {"west": "contract", "south": "class-count"}


def test_what_breaks_it_is_told_to_the_owner_alone(walked: Walked) -> None:
    (letter,) = walked.road.courier.collect(topic(run="run-1", site="west"))
    container = Container.parse(letter)
    reference = walked.road.manifest.site_named("west").dataset
    assert reference is not None
    key = container_key(walked.road.land.keys["west"], container_id=container.header.container_id)
    assert open_findings(container, key) == BROKEN
    assert container.header.parents == (reference.digest,)
    for site in ("east", "model-owner"):
        stranger = container_key(walked.road.land.keys[site], container_id=container.header.container_id)
        with pytest.raises(ConfedError) as refused:
            open_findings(container, stranger)
        assert refused.value.code == "wrong-key"
    assert not walked.road.courier.collect(topic(run="run-1", site="east"))


def test_no_value_of_a_table_is_anywhere_outside_the_enclaves(walked: Walked) -> None:
    assert any("/courier/" in name for name in walked.everything)
    assert b"contract" in walked.everything["log"]
    assert found(walked.everything, CANARIES) == []
    sink = io.BytesIO()
    sink.write(str(table_of("west").to_pydict()).encode())
    assert found({"plain": sink.getvalue()}, CANARIES) == ["text in plain", "number in plain"]


# Wrong turns.


def serve_other_dataset(road: Road) -> None:
    """Another dataset of the same owner and the same schema, under the digest of the right one."""
    reference = road.manifest.site_named("east").dataset
    assert reference is not None
    road.courier.serve_instead(reference.digest, road.land.files[other_reference(road).digest])


def serve_other_description(road: Road) -> None:
    preparation = road.manifest.preparation
    assert preparation is not None
    digests = preparation.descriptions
    road.courier.serve_instead(digests["east"], road.land.files[digests["north"]])


def other_reference(road: Road) -> SealedReference:
    found = road.manifest.site_named("north").dataset
    assert found is not None
    return found


def with_terms(**changes: Any) -> Callable[[Any], Any]:
    return lambda manifest: dataclasses.replace(
        manifest, preparation=dataclasses.replace(manifest.preparation, **changes)
    )


def swapped(manifest: Any) -> Any:
    """East's reference names north's dataset: another's, with the same schema."""
    sites = {site.owner.name: site for site in manifest.sites}
    east = dataclasses.replace(sites["east"], dataset=sites["north"].dataset)
    descriptions = {**manifest.preparation.descriptions, "east": manifest.preparation.descriptions["north"]}
    preparation = dataclasses.replace(manifest.preparation, descriptions=descriptions)
    every = tuple(east if site.owner.name == "east" else site for site in manifest.sites)
    return dataclasses.replace(manifest, sites=every, preparation=preparation)


def keyed_by_another(manifest: Any) -> Any:
    """East's dataset with the id of north's key."""
    sites = {site.owner.name: site for site in manifest.sites}
    reference = dataclasses.replace(sites["east"].dataset, key_id=sites["north"].dataset.key_id)
    every = tuple(
        dataclasses.replace(site, dataset=reference) if site.owner.name == "east" else site for site in manifest.sites
    )
    return dataclasses.replace(manifest, sites=every)


OTHER_PIPELINE = Pipeline.from_document({"name": "other"})
LOOSE = Contract.from_document({"name": "l", "rows": {"least": 1, "most": 9}, "others": "ignore", "columns": {"age": {"type": "float64"}, "kind": {"type": "text"}, "name": {"type": "text"}}})  # fmt: skip

TURNS: dict[str, tuple[Callable[[Any], Any] | None, Callable[[Road], None] | None, str]] = {
    "another dataset under its digest": (None, serve_other_dataset, "tampered"),
    "another description under its digest": (None, serve_other_description, "tampered"),
    "another owner's dataset of the same schema": (swapped, None, "unknown-key"),
    "another owner's dataset key": (keyed_by_another, None, "unknown-key"),
    "a pipeline that the dataset's owner did not name": (
        with_terms(pipeline=OTHER_PIPELINE),
        None,
        "manifest-mismatch",
    ),
    "a looser contract than the dataset was sealed under": (with_terms(contract=LOOSE), None, "manifest-mismatch"),
}


@pytest.fixture(scope="module")
def plain_land(quick_disk: Path) -> TableLand:
    return TableLand(folder=Path(tempfile.mkdtemp(dir=quick_disk)) / "land")


@pytest.mark.parametrize("sentence", TURNS)
def test_a_wrong_turn_is_refused_by_its_code(sentence: str, plain_land: TableLand, place: Path) -> None:
    change, turn, code = TURNS[sentence]
    land: TableLand = plain_land if change is None else TableLand(folder=place / "land", change=change)
    with Road(land, place / "road") as road:
        road.aggregator().open(1)
        if turn is not None:
            turn(road)
        with pytest.raises(type(error_for(code, "x"))):
            road.hold("east")
    shutil.rmtree(place)


# Statistics: they leave with a permit of the site's own broker, once, as far as the data key's budget goes.

STATISTICS = StatisticsTerms(
    queries=(
        Query(name="rows", kind="count", column="age", least=None, most=None, edges=None, share=None, epsilon=0.5),
    )
)


def permitting(epsilon: float) -> Callable[[str, Any], Mapping[str, Any]]:
    return lambda name, _homes: {} if name == "model-owner" else {"statistics_epsilon": epsilon}


@pytest.fixture(scope="module")
def counting_land(quick_disk: Path) -> TableLand:
    folder = Path(tempfile.mkdtemp(dir=quick_disk)) / "land"
    return TableLand(folder=folder, statistics=STATISTICS, floors=permitting(0.5))


@pytest.fixture
def counting(counting_land: TableLand, place: Path) -> Iterator[Road]:
    with Road(counting_land, place) as road:
        road.aggregator().open(1)
        yield road


def released(road: Road, site: str = "east") -> list[dict[str, Signed]]:
    letters = road.courier.collect(f"run-1/statistics/{site}")
    return [{name: Signed.from_json(value) for name, value in canonical.decode(letter).items()} for letter in letters]


def events(road: Road, event: str = "statistics-permitted") -> list[dict[str, Any]]:
    entries = [canonical.decode(row[0]) for row in road.homes["east"].store.rows("SELECT payload FROM ledger", ())]
    return [entry["body"] for entry in entries if entry["event"] == event]


def test_statistics_leave_once_signed_permitted_and_charged(counting: Road) -> None:
    counting.hold("east")
    (documents,) = released(counting)
    party = counting.manifest.site_named("east").owner
    permit = verify(documents["permit"], StatisticsPermit, signer=party.broker)
    release = verify(documents["release"], StatisticsRelease, signer=permit.signing_public)
    assert (permit.epsilon, permit.spent) == (0.5, 0.5)
    assert isinstance(release.answers["rows"], int)
    (body,) = events(counting)
    assert (body["permit"], body["epsilon"]) == (documents["permit"].digest, 0.5)
    # Another round of the same TEE, and another TEE of the same run, let nothing out again.
    counting.hold("east", attempt=1)
    assert events(counting, "refused") == []  # it does not even ask
    counting.hold("east", attempt=2, session=counting.session("east"))
    assert [body["code"] for body in events(counting, "refused")] == ["ticket"]
    assert released(counting) == [documents]
    assert len(events(counting)) == 1


def test_no_more_leaves_than_the_data_key_s_budget_permits(place: Path) -> None:
    land = TableLand(folder=place / "land", statistics=STATISTICS, floors=permitting(0.49))
    with Road(land, place / "road") as road:
        road.aggregator().open(1)
        held = road.hold("east")
        assert held.grants is not None  # the site trains on
        assert released(road) == []
        assert events(road) == []


def asking(road: Road, site: str = "east") -> tuple[StatisticsRequest, Any]:
    """A client's request, and its key; it has a credential, and has not asked yet."""
    session = road.session(site)
    session._statistics._asked.add(site)
    held = road.hold(site, session=session)
    party = held.site.owner
    request = StatisticsRequest(
        request_id=b"1" * 16,
        broker=party.broker,
        identity=party.identity,
        manifest=road.manifest.digest,
        run=road.manifest.run,
        round=1,
        attempt=0,
        purpose=Purpose.TRAIN,
        credential=held.grants.credential.digest,
    )
    return request, session._signing


def ask(road: Road, request: StatisticsRequest, key: Any) -> Signed:
    return road.client_of("east").permit_statistics(sign(request, key), epsilon=0.5)


def test_the_same_request_gets_the_same_permit_and_another_gets_none(counting: Road) -> None:
    request, key = asking(counting)
    permit = ask(counting, request, key)
    assert ask(counting, request, key) == permit
    with pytest.raises(TicketError):
        ask(counting, dataclasses.replace(request, request_id=b"2" * 16), key)
    assert len(events(counting)) == 1


def test_what_other_runs_spent_counts(counting: Road) -> None:
    request, key = asking(counting)
    dataset = counting.manifest.site_named("east").dataset
    assert dataset is not None
    with counting.homes["east"].store.transaction() as tx:
        tx.execute("INSERT INTO statistics VALUES (?, ?, ?)", (dataset.key_id, "an earlier run", 0.1))
    with pytest.raises(PrivacyBudgetError):
        ask(counting, request, key)
    assert events(counting) == []


ASKED: dict[str, tuple[Callable[[StatisticsRequest, Road], Any], str]] = {
    "without a credential": (lambda r, _: dataclasses.replace(r, credential="00" * 32), "credential"),
    "of a step that never was": (lambda r, _: dataclasses.replace(r, round=2), "credential"),
    "of another owner": (
        lambda r, road: dataclasses.replace(r, identity=road.homes["north"].party.identity),
        "ticket",
    ),
    "of another run": (lambda r, _: dataclasses.replace(r, run="run-2"), "manifest-mismatch"),
    "of a manifest that nobody approved": (lambda r, _: dataclasses.replace(r, manifest="00" * 32), "not-approved"),
}


@pytest.fixture(scope="module")
def asked_road(counting_land: TableLand, quick_disk: Path) -> Iterator[tuple[Road, StatisticsRequest, Any]]:
    with Road(counting_land, Path(tempfile.mkdtemp(dir=quick_disk))) as road:
        road.aggregator().open(1)
        yield (road, *asking(road))


@pytest.mark.parametrize("sentence", ASKED)
def test_a_request_for_statistics_that_is_not_right_is_refused(
    sentence: str, asked_road: tuple[Road, StatisticsRequest, Any]
) -> None:
    road, request, key = asked_road
    turn, code = ASKED[sentence]
    with pytest.raises(ConfedError) as refused:
        ask(road, turn(request, road), key)
    assert refused.value.code == code
    assert events(road) == []


def test_a_strangers_signature_is_refused(asked_road: tuple[Road, StatisticsRequest, Any]) -> None:
    road, request, _ = asked_road
    with pytest.raises(SignatureError):
        ask(road, request, road.homes["north"].identity_key)


def test_a_manifest_that_lets_nothing_out_permits_nothing(plain_land: TableLand, place: Path) -> None:
    with Road(plain_land, place) as road:
        road.aggregator().open(1)
        request, key = asking(road)
        with pytest.raises(PurposeError):
            ask(road, request, key)
        assert released(road) == []
