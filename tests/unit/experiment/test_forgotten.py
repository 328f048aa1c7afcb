"""What an aggregator that died has left is deleted before the next one starts, and nothing else."""

from pathlib import Path

from confed.experiment.services import forget_sealed
from confed.governor.courier import Courier
from confed.wire.addresses import handed_folder


def test_ciphertext_of_an_aggregator_that_is_gone_is_deleted(tmp_path: Path) -> None:
    folder, directory = tmp_path / "aggregator", tmp_path / "courier"
    (folder / "sealed-1").mkdir(parents=True)
    (folder / "sealed-1" / "model.base").write_bytes(b"1")
    (folder / "endpoint.json").write_bytes(b"{}")
    courier = Courier(directory)
    digest = courier.put(b"published")
    for name in ("0123456789abcdef.model.sealed", "ab" * 32):
        (handed_folder(directory) / name).write_bytes(b"2")
    forget_sealed(folder, directory)
    assert [path.name for path in folder.iterdir()] == ["endpoint.json"]
    assert list(handed_folder(directory).iterdir()) == []
    assert courier.path(digest).read_bytes() == b"published"
