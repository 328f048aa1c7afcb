"""An appraisal policy as its owner writes and signs it: typed, dated, and default-deny.

A policy file is TOML with a head (``format``, ``name``, ``profile``, ``issued``, ``expires``, ``sources``) and one
table, ``policy``, whose keys are the fields of the profile's policy class: all of them, and no other. It is read so:

1. the file is bounded, also in what makes TOML slow to parse, before it is parsed;
2. only text, whole numbers, truth values, lists and tables stand in it, not deeper than eight levels; no list and no
   table is empty, and whatever is left unchecked says why (``unchecked = "reason"``);
3. head and policy are read into their types: a key that is unknown or missing is refused with its dotted path.

The same document as canonical JSON (``encoded``) is what a manifest embeds and what ``digest`` names. A document past
its date can be read and shown; ``appraise`` refuses it. A signature is a statement (``confed.statement``) over the
digest of the file's bytes, in a file of its own beside the policy.
"""

from __future__ import annotations

import datetime
import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed import canonical, record, statement
from confed.attestation.policy import registry
from confed.attestation.policy.registry import Rules
from confed.errors import (
    EncodingError,
    PolicyExpiredError,
    PolicyFormatError,
    PolicyMissingError,
    ProfileNotAllowedError,
    SignatureError,
    SizeError,
)
from confed.manifest import Unchecked

FORMAT = "confed-appraisal/1"
LIMIT_BYTES = 256 * 1024
"""Largest policy file, and largest document in canonical JSON."""

LONGEST_DAYS = 731
"""From a document's date to its expiry: what was a good TCB two years ago says little today."""

# tomllib walks a dotted key once for each of its parts, and a table's whole name again for every line below it.
_LINE_LIMIT_BYTES = 8 * 1024
_LINE_LIMIT_DOTS = 64
_DEPTH_LIMIT = 8
_SIGNATURE_LIMIT_BYTES = 4 * 1024
_TEXT_LIMIT = 2_000
_NUMBER_LIMIT = 2**53
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}\Z")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """A document before its policy is read: which class that is depends on the profile."""

    format: str
    name: str
    profile: str
    issued: str
    expires: str
    sources: tuple[str, ...]
    policy: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySignature:
    """The statement that an appraisal policy's owner signs: SHA-256 of the file's bytes."""

    TYPE: ClassVar[str] = "confed/v1/appraisal-policy-signature"

    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """An appraisal policy with its head.

    Attributes:
        format: ``confed-appraisal/1``.
        name: lower-case letters, digits, dots and dashes.
        profile: the evidence profile that it is for, such as ``sev-snp/1``.
        issued: when its values were collected, as ``YYYY-MM-DD``; evidence from before is judged by them too.
        expires: the last day (UTC) on which it may be used.
        sources: where its values come from; never empty.
        policy: of the class that the profile names.

    Raises:
        PolicyFormatError: a field that is not of its one form, dates out of order or too far apart.
    """

    format: str
    name: str
    profile: str
    issued: str
    expires: str
    sources: tuple[str, ...]
    policy: Any

    def __post_init__(self) -> None:
        _require(self.format == FORMAT, "format", FORMAT, self.format)
        _require(bool(_NAME.match(self.name)), "name", "lower-case letters, digits, dots and dashes", self.name)
        found: object = getattr(type(self.policy), "PROFILE", None)
        _require(found == self.profile, "profile", f"that of the policy ({found})", self.profile)
        first, end = _date("issued", self.issued), _date("expires", self.expires)
        days = (end - first).days
        _require(0 <= days <= LONGEST_DAYS, "expires", f"at most {LONGEST_DAYS} days after {first}", self.expires)
        _require(bool(self.sources), "sources", "at least one", "none")
        for index, source in enumerate(self.sources):
            _require(bool(source.strip()), f"sources[{index}]", "text", "nothing")

    def to_table(self) -> dict[str, Any]:
        """Return the document as a JSON value: what a manifest embeds under the profile."""
        return record.to_json(self)

    @property
    def encoded(self) -> bytes:
        """The document as canonical JSON."""
        return canonical.encode(self.to_table())

    @property
    def digest(self) -> str:
        """SHA-256 of ``encoded`` in hexadecimal: the policy's name in ledgers and tokens."""
        return canonical.digest(self.encoded)

    def require_current(self, now: datetime.datetime) -> None:
        """Refuse a document after its last day.

        Args:
            now: when, with its time zone.

        Raises:
            PolicyExpiredError: the last day is over.
        """
        today = now.astimezone(datetime.UTC).date()
        if today > _date("expires", self.expires):
            raise PolicyExpiredError(f"policy {self.name}", expected=f"a day until {self.expires}", got=str(today))

    def require_decided(self, *, rules: Mapping[str, Rules] = registry.RULES) -> None:
        """Refuse a policy that leaves open what production has to have decided.

        Raises:
            PolicyMissingError: a field that says ``unchecked`` where its kind may not.
        """
        for name in rules[self.profile].decided_in_production:
            if isinstance(getattr(self.policy, name), Unchecked):
                raise PolicyMissingError(
                    f"tee.appraisal.{self.profile}.{name}", expected="values, in production", got="unchecked"
                )

    def appraise(
        self, claims: Any, *, profile: str, now: datetime.datetime, rules: Mapping[str, Rules] = registry.RULES
    ) -> None:
        """Accept what genuine evidence says, or refuse it with the class that says why.

        Args:
            claims: of the driver's own type (``SnpClaims`` and so on).
            profile: of the verifier that made the claims.
            now: when, with its time zone.
            rules: by profile; those of every kind that confed knows.

        Raises:
            ProfileNotAllowedError: claims of another kind of TEE.
            PolicyExpiredError: a document past its date.
            AppraisalError: of the class that the floor or the policy gives.
        """
        if profile != self.profile:
            raise ProfileNotAllowedError("profile", expected=self.profile, got=profile)
        registry.require_floors(profile, claims, rules=rules)
        self.require_current(now)
        registry.appraise(profile, claims, self.policy, now=now, rules=rules)


def load(data: bytes, *, rules: Mapping[str, Rules] = registry.RULES) -> PolicyDocument:
    """Return the document of a policy file, whether or not its date is past and whoever signed it.

    Args:
        data: the file's bytes.
        rules: by profile; those of every kind that confed knows.

    Raises:
        PolicyFormatError: anything but the one form, with the dotted path of the key at fault.
    """
    # 1.
    _require(len(data) <= LIMIT_BYTES, "policy file in bytes", f"at most {LIMIT_BYTES}", len(data))
    for number, line in enumerate(data.split(b"\n"), start=1):
        _require(len(line) <= _LINE_LIMIT_BYTES, f"line {number} in bytes", f"at most {_LINE_LIMIT_BYTES}", len(line))
        dots = line.count(b".")
        _require(dots <= _LINE_LIMIT_DOTS, f"line {number}, dots", f"at most {_LINE_LIMIT_DOTS}", dots)
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise PolicyFormatError("policy file", expected="TOML", got=str(error)[:100]) from error
    return _read(table, rules)


def load_signed(
    data: bytes,
    signature_file: bytes,
    *,
    trusted_keys: Sequence[bytes],
    rules: Mapping[str, Rules] = registry.RULES,
) -> PolicyDocument:
    """Return the document of a policy file that one of the trusted keys has signed; nothing is parsed before that.

    Raises:
        SignatureError, EncodingError: see ``verify_policy_signature``.
        PolicyFormatError: see ``load``.
    """
    verify_policy_signature(data, signature_file, trusted_keys=trusted_keys)
    return load(data, rules=rules)


def decode(data: bytes, *, rules: Mapping[str, Rules] = registry.RULES) -> PolicyDocument:
    """Return the document of canonical JSON: ``decode(document.encoded) == document``.

    Raises:
        PolicyFormatError: anything but the one form.
    """
    try:
        table = canonical.decode(data, limit_bytes=LIMIT_BYTES)
    except (EncodingError, SizeError) as error:
        raise PolicyFormatError("policy document", expected=error.expected, got=error.got) from error
    return _read(table, rules)


def from_table(profile: str, table: Any, *, rules: Mapping[str, Rules] = registry.RULES) -> PolicyDocument:
    """Return the document that a manifest embeds under a profile (``to_table`` wrote it).

    Raises:
        PolicyFormatError: not the one form, or a document for another profile.
    """
    document = _read(table, rules)
    _require(document.profile == profile, "profile", profile, document.profile)
    return document


def sign_policy(data: bytes, private_key: Ed25519PrivateKey, *, rules: Mapping[str, Rules] = registry.RULES) -> bytes:
    """Return the signature file of a policy file: canonical JSON of a signed ``PolicySignature``.

    Raises:
        PolicyFormatError: bytes that are not a policy; nobody signs what nobody could read.
    """
    load(data, rules=rules)
    signed = statement.sign(PolicySignature(policy=canonical.digest(data)), private_key)
    return canonical.encode(signed.to_json())


def verify_policy_signature(data: bytes, signature_file: bytes, *, trusted_keys: Sequence[bytes]) -> bytes:
    """Return the trusted key (raw Ed25519, 32 bytes) that signed exactly these bytes.

    Guarantees: the key that the signature file names is used only if it is one of ``trusted_keys``.

    Raises:
        SignatureError: no trusted key at all, another signer, another file, or a signature that does not verify.
        EncodingError: a signature file that is not the one form.
        SizeError: a signature file that is too large to be one.
    """
    if not trusted_keys:
        raise SignatureError("trusted policy keys", expected="at least one", got="none")
    signed = statement.Signed.from_json(canonical.decode(signature_file, limit_bytes=_SIGNATURE_LIMIT_BYTES))
    # Capitals, spaces and loose bits at the end of base64 are further spellings of the same statement.
    if canonical.encode(signed.to_json()) != signature_file:
        raise EncodingError("policy signature", expected="its one spelling", got="another")
    signer = next((key for key in trusted_keys if key == signed.signer), None)
    if signer is None:
        raise SignatureError("policy signer", expected="a trusted key", got=signed.signer.hex()[:16])
    found = statement.verify(signed, PolicySignature, signer=signer)
    digest = canonical.digest(data)
    if found.policy != digest:
        raise SignatureError("signed policy", expected=digest[:16], got=found.policy[:16])
    return signer


def _read(table: Any, rules: Mapping[str, Rules]) -> PolicyDocument:
    # 2.
    _require_plain(table, at="", depth=0)
    # 3.
    head = record.from_json(_Head, table, error=PolicyFormatError)
    found = rules.get(head.profile)
    if found is None:
        near = difflib.get_close_matches(head.profile, rules, n=1, cutoff=0)
        expected = f"a known profile (nearest: {near[0] if near else 'none'})"
        raise PolicyFormatError("profile", expected=expected, got=head.profile[:60])
    policy = record.from_json(found.policy, head.policy, at="policy", error=PolicyFormatError)
    return PolicyDocument(
        format=head.format,
        name=head.name,
        profile=head.profile,
        issued=head.issued,
        expires=head.expires,
        sources=head.sources,
        policy=policy,
    )


def _require_plain(value: Any, *, at: str, depth: int) -> None:
    if isinstance(value, dict):
        entries: list[tuple[str, Any]] = [(f"{at}.{key}" if at else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        entries = [(f"{at}[{index}]", item) for index, item in enumerate(value)]
    else:
        _require_value(value, at)
        return
    _require(depth < _DEPTH_LIMIT, at[:200], f"at most {_DEPTH_LIMIT} levels", "more")
    _require(bool(entries), at or "policy file", "at least one entry", "an empty list or table")
    for name, item in entries:
        _require_plain(item, at=name, depth=depth + 1)


def _require_value(value: Any, at: str) -> None:
    if isinstance(value, str):
        _require(len(value) <= _TEXT_LIMIT, at, f"at most {_TEXT_LIMIT} characters", len(value))
        if at == "unchecked" or at.endswith(".unchecked"):
            _require(bool(value.strip()), at, "a reason", "nothing")
        return
    # Dates and fractions: TOML has them, policies do not.
    if not isinstance(value, bool | int):
        raise PolicyFormatError(
            at or "policy file", expected="text, a whole number, true or false", got=repr(value)[:60]
        )
    _require(abs(value) < _NUMBER_LIMIT, at, "a number below 2^53", "a larger one")


def _date(field: str, text: str) -> datetime.date:
    try:
        found = datetime.date.fromisoformat(text) if _DATE.match(text) else None
    except ValueError:
        found = None
    if found is None:
        raise PolicyFormatError(field, expected='a date as text, "YYYY-MM-DD"', got=repr(text)[:60])
    return found


def _require(holds: bool, field: str, expected: object, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise PolicyFormatError(field, expected=expected, got=got)
