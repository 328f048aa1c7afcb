import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest

from confed.attestation import measurement
from confed.attestation.measurement import (
    aggregator_image,
    client_image,
    inference_image,
    measure,
    package_directory,
)
from confed.errors import ConfigError, MeasurementError, MissingFileError

LOCK = "6f" * 32


@pytest.fixture
def app(tmp_path):
    root = tmp_path / "app"
    (root / "tasks").mkdir(parents=True)
    (root / "app.py").write_text("import tasks.digits\n")
    (root / "tasks" / "digits.py").write_text("x = 1\n")
    return root


def measured(path: Path, **extra: str) -> str:
    return measure({"app": path}, extra=extra)


def test_a_copy_elsewhere_measures_the_same(app, tmp_path):
    copy = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(app, copy)
    os.utime(copy / "app.py", (1, 1))
    assert measured(copy) == measured(app)
    link = tmp_path / "link"
    link.symlink_to(copy)
    assert measured(link) == measured(app)


def test_the_order_of_a_directory_does_not_matter(app, monkeypatch):
    for name in ("b.py", "a.py", "c.py"):
        (app / name).write_text(name)
    before, scandir = measured(app), os.scandir

    def backwards(directory):
        with scandir(directory) as entries:
            return contextlib.nullcontext(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def forwards(directory):
        with scandir(directory) as entries:
            return contextlib.nullcontext(sorted(entries, key=lambda entry: entry.name))

    for order in (backwards, forwards):
        monkeypatch.setattr(os, "scandir", order)
        assert measured(app) == before


CHANGES = {
    "a byte of code": lambda app: (app / "app.py").write_text("import tasks.digitz\n"),
    "a file more": lambda app: (app / "sitecustomize.py").write_text(""),
    "a file less": lambda app: (app / "tasks" / "digits.py").unlink(),
    "a file renamed": lambda app: (app / "app.py").rename(app / "apq.py"),
    "a file in another directory": lambda app: (app / "tasks" / "digits.py").rename(app / "digits.py"),
    "a compiled module without source": lambda app: (app / "torch.pyc").write_bytes(b"x"),
    "a compiled extension": lambda app: (app / "tasks" / "fast.so").write_bytes(b"x"),
    "two files swapped": lambda app: (
        (app / "app.py").write_text("x = 1\n"), (app / "tasks" / "digits.py").write_text("import tasks.digits\n")
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_measurement_changes_with(app, change):
    before = measured(app)
    change(app)
    assert measured(app) != before


def test_the_measurement_depends_on_labels_and_extras(app):
    values = {
        measured(app), measured(app, lock="a"), measured(app, lock="b"), measured(app, python="a"),
        measure({"lib": app}, extra={}), measure({"app": app, "lib": app}, extra={}),
    }  # fmt: skip
    assert len(values) == 6


IGNORED = {
    "a cached module": lambda app: ((app / "__pycache__").mkdir(), (app / "__pycache__" / "app.pyc").write_bytes(b"x")),
    "a hidden directory": lambda app: ((app / ".venv").mkdir(), (app / ".venv" / "x.py").write_text("")),
    "settings": lambda app: (app / "config.toml").write_text("rounds = 3"),
    "a link to something that is no code": lambda app: (app / "README.md").symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("change", IGNORED.values(), ids=IGNORED.keys())
def test_the_measurement_does_not_change_with(app, change):
    before = measured(app)
    change(app)
    assert measured(app) == before


LINKS = {
    "code behind a link": lambda app: (app / "more.py").symlink_to("app.py"),
    "code behind a broken link": lambda app: (app / "more.py").symlink_to("nowhere"),
    "a directory behind a link": lambda app: (app / "more").symlink_to("tasks"),
    "a pipe in place of code": lambda app: os.mkfifo(app / "pipe.py"),
}


@pytest.mark.parametrize("change", LINKS.values(), ids=LINKS.keys())
def test_it_is_refused_to_measure(app, change):
    change(app)
    with pytest.raises(MeasurementError):
        measured(app)


def test_what_is_not_there_is_not_measured(app, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(MissingFileError):
            measured(path)


def test_images_are_found_by_import_and_not_by_working_directory(app, tmp_path, monkeypatch):
    before = client_image(app, LOCK), aggregator_image(LOCK)
    decoy = tmp_path / "decoy" / "confed"
    decoy.mkdir(parents=True)
    (decoy / "__init__.py").write_text("")
    monkeypatch.chdir(decoy.parent)
    assert (client_image(app, LOCK), aggregator_image(LOCK)) == before
    with pytest.raises(ConfigError):
        client_image(Path(), LOCK)


def test_images_differ_by_role_app_and_lock(app):
    other = app.parent / "other"
    shutil.copytree(app, other)
    (other / "app.py").write_text("")
    images = {
        client_image(app, LOCK), client_image(other, LOCK), client_image(None, LOCK), client_image(app, "7" * 64),
        aggregator_image(LOCK), aggregator_image("7" * 64),
    }  # fmt: skip
    assert len(images) == 6


@pytest.mark.parametrize(
    ("image", "package"),
    [
        (client_image, "confed"), (client_image, "clients"), (inference_image, "confed"), (inference_image, "clients"),
        (lambda _, lock: aggregator_image(lock), "confed"), (lambda _, lock: aggregator_image(lock), "aggregator"),
    ],
)  # fmt: skip
def test_every_package_that_a_tee_starts_from_is_in_its_measurement(image, package, app, monkeypatch):
    before = image(app, LOCK)
    changed = app.parent / package
    shutil.copytree(package_directory(package), changed, ignore=shutil.ignore_patterns("__pycache__"))
    true_place = measurement.package_directory
    monkeypatch.setattr(measurement, "package_directory", lambda name: changed if name == package else true_place(name))
    assert image(app, LOCK) == before
    (changed / "__init__.py").write_text("import os\n")
    assert image(app, LOCK) != before


def test_a_package_that_is_not_installed_is_a_users_mistake():
    with pytest.raises(MissingFileError):
        package_directory("no_such_package_of_ours")


def test_three_hundred_files_are_measured_in_a_moment(tmp_path):
    for index in range(300):
        (tmp_path / f"module_{index}.py").write_text("x = 1\n" * 700)
    measured(tmp_path)
    spent: list[float] = []
    for _ in range(5):  # the best of several: other threads and other programs take the processor's caches meanwhile
        started = time.thread_time()
        measured(tmp_path)
        spent.append(time.thread_time() - started)
    assert min(spent) < 0.1
