"""Where a broker, a proxy and ``confed evidence endorse`` take endorsements from: options that contradict are told, none is ignored."""

import pytest
from typer.testing import CliRunner

from confed.cli import broker, evidence, infer
from confed.errors import ConfigError, EndorsementFormatError, MissingFileError

MISTAKES = {
    "a cache and a bundle": (("--endorsement-cache", "c", "--endorsement-bundle", "b"), ConfigError),
    "a PCCS without a cache": (("--pccs", "pccs:8081"), ConfigError),
    "its authorities without a cache": (("--pccs-ca", "ca.pem"), ConfigError),
    "a PCCS beside a bundle": (("--pccs", "pccs:8081", "--endorsement-bundle", "b"), ConfigError),
    "authorities of no PCCS": (("--endorsement-cache", "c", "--pccs-ca", "ca.pem"), ConfigError),
    "a PCCS that is an address of the web": (("--endorsement-cache", "c", "--pccs", "https://pccs/x"), ConfigError),
    "authorities that are not there": (
        ("--endorsement-cache", "c", "--pccs", "pccs:8081", "--pccs-ca", "/no/such"), MissingFileError,
    ),
    "a bundle that is not there": (("--endorsement-bundle", "/no/such"), MissingFileError),
    "a bundle that is none": (("--endorsement-bundle", __file__), EndorsementFormatError),
}  # fmt: skip


@pytest.mark.parametrize(("options", "error"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_broker_that_would_not_do_what_was_meant_does_not_start(options, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(broker.app, ["serve", "--owner", "nobody", *options])
    assert type(result.exception) is error
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(("options", "error"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_proxy_that_would_not_do_what_was_meant_does_not_start(options, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(infer.app, ["proxy", "http://127.0.0.1:9", "--policy", "none", *options])
    assert type(result.exception) is error


def test_what_would_be_ignored_is_refused_when_endorsing_too():
    options = ["--tee", "tdx", "--evidence", __file__, "--pccs-ca", __file__]
    result = CliRunner().invoke(evidence.app, ["endorse", *options])
    assert type(result.exception) is ConfigError
    assert result.exception.field == "--pccs-ca"
