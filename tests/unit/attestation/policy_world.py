"""A toy kind of TEE with a policy of its own, and files of it: what documents do, without any vendor's rules."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.attestation.policy.registry import Rules
from confed.errors import DebugError, MeasurementError, PolicyFormatError, TcbError
from confed.manifest import Unchecked

OWNER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"p" * 32)
OWNER_PUBLIC = OWNER.public_key().public_bytes_raw()
OTHER_PUBLIC = OTHER.public_key().public_bytes_raw()
LAST_MOMENT = datetime.datetime(2027, 3, 31, 23, 59, 59, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyClaims:
    debug: bool = False
    measurement: str = "aa"
    svn: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyTcb:
    svn: int
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyPolicy:
    PROFILE: ClassVar[str] = "toy/1"

    measurements: tuple[str, ...] | Unchecked
    minimum_tcb: Mapping[str, ToyTcb]
    single_socket: bool
    least: ToyTcb | Unchecked

    def __post_init__(self) -> None:
        if isinstance(self.measurements, tuple) and any(set(entry) == {"0"} for entry in self.measurements):
            raise PolicyFormatError("measurements", expected="digests of code", got="zeros")


def require_floors(claims):
    if claims.debug:
        raise DebugError("debug", expected="off", got="on")


def require_defaults(claims):
    require_floors(claims)


def appraise(claims, policy, *, now):
    require_floors(claims)
    if claims.svn < policy.minimum_tcb["toy"].svn:
        raise TcbError("svn", expected=policy.minimum_tcb["toy"].svn, got=claims.svn)
    if isinstance(policy.measurements, tuple) and claims.measurement not in policy.measurements:
        raise MeasurementError("measurement", expected="named", got=claims.measurement)


TOY = Rules(policy=ToyPolicy, require_floors=require_floors, require_defaults=require_defaults, appraise=appraise)
RULES = {"toy/1": TOY}

FILE = """
format = "confed-appraisal/1"
name = "toy-2026.1"  # what it is called
profile = "toy/1"
issued = "2026-11-21"
expires = "2027-03-31"
sources = ["TOY-SB-1, 2026-11-01", "our own build"]

[policy]
measurements = ["aa", "bb"]
single_socket = true
least = { unchecked = "minimum_tcb says it for each product" }

[policy.minimum_tcb.toy]
svn = 3
since = "2026-01"
"""


def with_line(old, new):
    """The file with one of its lines written in another way."""
    assert FILE.count(old) == 1
    return FILE.replace(old, new).encode()
