"""Is this a quote of this key, over these registers, for this nonce? What every verifier of TPM evidence asks.

1. The signature over the message holds, with SHA-256 or better.
2. The message is a quote that a TPM made (magic, type), and nothing follows it.
3. One bank is signed, SHA-256 or better, and the values are of that bank.
4. The register numbers of the values are exactly the numbers signed: a value cannot change its register.
5. The signed digest is that of the values, in the order of their numbers.
6. The nonce is the verifier's.

A quote counts for no more than its key: whose key it is, and that it signs nothing but what the TPM itself has made
(``require_attestation_key``), is the caller's to establish.

Source: TPM 2.0 Library Specification 1.59, part 3, section 18.4 (TPM2_Quote); part 1, section 17 (PCR).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from confed.attestation.certificates import verify_signature
from confed.attestation.tee.tpm_structures import (
    TpmPublic,
    TpmQuote,
    TpmSignature,
    hash_of,
    parse_quote,
    parse_signature,
)
from confed.errors import AlgorithmError, BindingMismatchError, KeyBindingError, NonceError, PcrDigestError

# TPM 2.0 Library, part 1, section 25: born in this TPM, unable to leave it, and signing only what the TPM itself made.
_DEMANDED = ("fixedTPM", "fixedParent", "sensitiveDataOrigin", "restricted", "sign")
_FORBIDDEN = ("decrypt",)
# TPM 2.0 Library, part 2, section 10.4.3: TPM2B_DATA holds at most a digest.
_QUALIFYING_BYTES = 64
_RSA_SCHEMES = ("rsassa", "rsapss")


def require_attestation_key(public: TpmPublic) -> None:
    """Refuse a key that could sign what no TPM has made, or that may exist outside its TPM.

    Raises:
        KeyBindingError: not restricted to signing, or not born in and bound to one TPM.
    """
    missing = [name for name in _DEMANDED if name not in public.attributes]
    extra = [name for name in _FORBIDDEN if name in public.attributes]
    if missing or extra:
        raise KeyBindingError(
            "attestation key attributes",
            expected=f"{', '.join(_DEMANDED)}, not {', '.join(_FORBIDDEN)}",
            got=", ".join(public.attributes) or "none",
        )


def verify_quote(
    message: bytes,
    signature: bytes,
    key: PublicKeyTypes,
    *,
    pcrs: Mapping[int, bytes],
    bank: str,
    nonce: bytes | None,
) -> TpmQuote:
    """Return the fields of a quote whose signature, registers and nonce hold.

    Args:
        message: TPMS_ATTEST, the bytes that were signed.
        signature: TPMT_SIGNATURE, or the bare number of RSASSA with SHA-256.
        key: the attestation key.
        pcrs: the registers' values by number, as somebody presents them.
        bank: the bank that they are of, such as ``sha256``.
        nonce: what the quote must answer; ``None`` leaves freshness unchecked.

    Raises:
        EvidenceFormatError, EvidenceSizeError, TrailingBytesError: not exactly one quote, or one signature.
        AlgorithmError: a hash below SHA-256, or a scheme that is not the key's.
        EvidenceSignatureError: not signed by ``key``.
        PcrDigestError: other registers or other values than were signed.
        NonceError: another nonce.
    """
    # 1.
    digest = _verify_signature(message, signature, key)
    # 2.
    quote = parse_quote(message)
    # 3., 4. and 5.
    _require_registers(quote, pcrs, bank=bank, digest=digest)
    # 6.
    if nonce is not None and quote.nonce != nonce:
        raise NonceError("TPM quote nonce", expected=nonce.hex()[:32] or "none", got=quote.nonce.hex()[:32] or "none")
    return quote


def require_data(quote: TpmQuote, expected: bytes | None) -> None:
    """Compare a caller's data, padded with zeros to 64 bytes, with what the quote carries; ``None`` is not compared.

    Raises:
        BindingMismatchError: other data.
    """
    if expected is None:
        return
    if quote.nonce.ljust(_QUALIFYING_BYTES, b"\x00") != expected.ljust(_QUALIFYING_BYTES, b"\x00"):
        raise BindingMismatchError("TPM qualifying data", expected=expected.hex()[:32], got=quote.nonce.hex()[:32])


def _verify_signature(message: bytes, signature: bytes, key: PublicKeyTypes) -> str:
    """Check a quote's signature and return the name of its hash."""
    if isinstance(key, rsa.RSAPublicKey) and len(signature) == (key.key_size + 7) // 8:
        # A TPMT_SIGNATURE of this key would be longer by its header; this is the bare number.
        parsed = TpmSignature(scheme="rsassa", digest="sha256", value=signature)
    else:
        parsed = parse_signature(signature)
    algorithm = hash_of(parsed.digest)
    match key:
        case rsa.RSAPublicKey() if parsed.scheme in _RSA_SCHEMES:
            pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
            scheme = pss if parsed.scheme == "rsapss" else padding.PKCS1v15()
        case ec.EllipticCurvePublicKey() if parsed.scheme == "ecdsa":
            scheme = None
        case _:
            raise AlgorithmError("TPM signature", expected=f"a scheme of {type(key).__name__}", got=parsed.scheme)
    verify_signature(key, parsed.value, message, algorithm=algorithm, scheme=scheme, what="TPM quote")
    return parsed.digest


def _require_registers(quote: TpmQuote, pcrs: Mapping[int, bytes], *, bank: str, digest: str) -> None:
    size = hash_of(bank).digest_size
    # 3.
    signed = {selection.bank: selection.registers for selection in quote.selections}
    if set(signed) - {bank}:
        raise PcrDigestError("signed banks", expected=bank, got=", ".join(signed))
    # 4.
    numbers = signed.get(bank, ())
    if set(pcrs) != set(numbers):
        raise PcrDigestError("registers of the quote", expected=f"the signed ones, {_list(numbers)}", got=_list(pcrs))
    short = [number for number, value in pcrs.items() if len(value) != size]
    if short:
        raise PcrDigestError(f"register {short[0]} in bytes", expected=size, got=len(pcrs[short[0]]))
    # 5.
    found = hashlib.new(digest, b"".join(pcrs[number] for number in numbers)).digest()
    if found != quote.pcr_digest:
        raise PcrDigestError("digest of the registers", expected=quote.pcr_digest.hex()[:32], got=found.hex()[:32])


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"
