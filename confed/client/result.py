"""What a client gives back: an update, or metrics alone, sealed to the one aggregator that its ticket names."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.client.step import Arrays, Grants, Step
from confed.errors import ShapeError
from confed.journey import Kind
from confed.manifest import Manifest, Site
from confed.model.update import Declaration, UpdateDetail, update_key_info
from confed.model.weights import pack
from confed.sealing.derivation import new_data_key
from confed.sealing.recipients import HpkeRecipient, Method, RecipientEntry
from confed.sealing.sealer import Draft, Sealed, seal_to_bytes


def seal_result(  # noqa: PLR0913 (what a result consists of)
    manifest: Manifest,
    site: Site,
    step: Step,
    grants: Grants,
    *,
    manifest_digest: str,
    arrays: Arrays | None,
    weight: float,
    metrics: Mapping[str, float],
    signing_key: Ed25519PrivateKey,
) -> tuple[bytes, Sealed]:
    """Return a sealed update (or, without arrays, sealed metrics) and its digest and size.

    ``manifest_digest`` is the manifest's, computed once. Weight, norm and metrics are in the sealed declaration; the
    header says in clear only for which step it is.

    Raises:
        ShapeError: tensors other than the base's.
        DeclarationError, NotFiniteError: a weight or metric that cannot be declared.
    """
    if arrays is not None:
        arrays = _in_base_order(arrays, step.arrays)
    declaration = Declaration(
        weight=weight,
        norm=_norm(arrays, step.arrays) if arrays is not None else 0.0,
        metrics=metrics,
        dataset=site.dataset.digest if site.dataset else "",
    )
    data_key = new_data_key()
    kind = Kind.UPDATE if arrays is not None else Kind.METRICS
    info = update_key_info(
        run=manifest.run,
        round_number=step.round_number,
        attempt=step.attempt,
        purpose=step.purpose,
        site=site.owner.name,
    )
    recipient = HpkeRecipient(grants.aggregator.hpke_public)
    draft = Draft(
        kind=kind,
        container_id=os.urandom(16).hex(),
        version=step.round_number,
        parents=(step.base,),
        owner=site.owner.identity,
        manifest=manifest_digest,
        detail=_detail(manifest, manifest_digest, site, step, grants).to_detail(),
        recipients=(
            RecipientEntry(method=Method.HPKE, key_id=recipient.key_id, wrapped=recipient.wrap(data_key, info=info)),
        ),
        declaration_plaintext=declaration.to_bytes(),
    )
    parts = pack(arrays) if arrays is not None else []
    return seal_to_bytes(parts, draft, data_key=data_key, signing_key=signing_key)


def _detail(manifest: Manifest, digest: str, site: Site, step: Step, grants: Grants) -> UpdateDetail:
    return UpdateDetail(
        run=manifest.run,
        manifest=digest,
        round=step.round_number,
        attempt=step.attempt,
        purpose=step.purpose,
        base=step.base,
        aggregator=grants.aggregator.instance,
        site=site.owner.name,
        credential=grants.credential.digest,
        ticket=grants.ticket.digest,
        layout=manifest.model.layout,
    )


def _in_base_order(arrays: Arrays, base: Arrays) -> Arrays:
    """Return the trained arrays in the base's order, their names, types and shapes checked against it."""
    if set(arrays) != set(base):
        raise ShapeError("trained tensors", expected=f"the base's {len(base)} names", got=f"{len(arrays)} others")
    for name, array in arrays.items():
        if array.shape != base[name].shape or array.dtype != base[name].dtype:
            expected, got = f"{base[name].dtype}{base[name].shape}", f"{array.dtype}{array.shape}"
            raise ShapeError(f"tensor {name}", expected=expected, got=got)
    # Not ascontiguousarray: it gives an array without dimensions one.
    return {name: np.asarray(arrays[name], order="C") for name in base}


def _norm(arrays: Arrays, base: Arrays) -> float:
    """L2 norm of the difference from the base over all floating tensors, in float64."""
    total = 0.0
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating):
            difference = array.astype(np.float64).ravel() - base[name].astype(np.float64).ravel()
            total += float(np.dot(difference, difference))
    return float(np.sqrt(total))
