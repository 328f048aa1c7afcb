"""What a client gives back: an update, or metrics alone, sealed to the one aggregator that its ticket names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confed.client.feedback import Feedback
from confed.client.step import Arrays, Grants, Step
from confed.compression import name_of
from confed.journey import Kind
from confed.manifest import Manifest, Site
from confed.memory import room_for
from confed.model.compressed import CompressedForm, apart, compress
from confed.model.differences import square_of_difference
from confed.model.trained import Trained, as_numbers
from confed.model.update import Declaration, UpdateDetail, update_key_info
from confed.model.weights import layout_of, pack
from confed.sealing.derivation import new_data_key
from confed.sealing.header import CHUNK_BYTES
from confed.sealing.recipients import HpkeRecipient, Method, RecipientEntry
from confed.sealing.sealer import Draft, Sealed, seal_to_memory

_BLOCK = 1 << 16

_ROUNDING = 0x726F756E64
"""Keeps the draws of rounding apart from the app's own."""


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
    feedback: Feedback | None,
    room: Callable[[int], memoryview] = room_for,
) -> tuple[memoryview, Sealed]:
    """Return a sealed update (or, without arrays, sealed metrics) and its digest and size.

    ``manifest_digest`` is the manifest's, computed once. ``room`` lends memory for an update. ``feedback`` carries over
    what compression leaves out, where the manifest says so. Weight, norm and metrics are in the sealed declaration; the
    header says in clear only for which step it is.

    A step of one site lets go of its base here, before memory is taken for what is sealed.

    Raises:
        ShapeError: tensors other than the manifest's, or tied ones that are not equal.
        DeclarationError, NotFiniteError: a weight or metric that cannot be declared.
    """
    parts: Sequence[memoryview] = ()
    norm, chunk_bytes = 0.0, CHUNK_BYTES
    if arrays is not None:
        trained = trained_of(manifest, step)
        taken = trained.taken(arrays)
        if manifest.compression is None:
            parts, norm = pack(taken, like=trained.part), norm_of(trained, taken, step.arrays)
        else:
            form = CompressedForm.of(trained.part, manifest.compression)
            parts, norm = _compressed(manifest, form, taken, site=site, step=step, grants=grants, feedback=feedback)
            chunk_bytes = form.chunk_bytes
        if len(step.grants) == 1:
            step.arrays = {}
    declaration = Declaration(
        weight=weight,
        norm=norm,
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
    recipient = _recipient(grants.aggregator.hpke_public)
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
    return seal_to_memory(
        parts,
        draft,
        data_key=data_key,
        signing_key=signing_key,
        chunk_bytes=chunk_bytes,
        room=room if arrays is not None else room_for,
    )


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
        compression=name_of(manifest.compression),
    )


@lru_cache(maxsize=4)
def _recipient(public: bytes) -> HpkeRecipient:
    """Sites of one TEE seal to one aggregator: its key is parsed once."""
    return HpkeRecipient(public)


def trained_of(manifest: Manifest, step: Step) -> Trained:
    """Return what travels of the base that a step opened; worked out once a step.

    Raises:
        ShapeError: the base lacks a tensor that the manifest names.
    """
    if step.trained is None:
        step.trained = Trained.of(layout_of(step.arrays), names=manifest.model.trained, tied=manifest.model.tied)
    return step.trained


def _compressed(
    manifest: Manifest,
    form: CompressedForm,
    taken: Arrays,
    *,
    site: Site,
    step: Step,
    grants: Grants,
    feedback: Feedback | None,
) -> tuple[Sequence[memoryview], float]:
    """Return the parts of a compressed update and the norm of what it stands for; note what it leaves out."""
    name, number = site.owner.name, step.round_number
    # Drawn from the manifest's seed, as the app's own: a retry in another TEE rounds alike.
    seed = manifest.client_seed(site=name, round_number=number)
    made = compress(
        form,
        apart(taken, form.layout),
        apart(step.arrays, form.layout),
        carried=None if feedback is None else feedback.carried(name, round_number=number),
        generator=np.random.default_rng([seed, _ROUNDING]),
    )
    if feedback is not None:
        feedback.note(name, round_number=number, ticket=grants.ticket.digest, residual=made.residual)
    return made.parts, made.norm


def norm_of(trained: Trained, taken: Arrays, base: Arrays) -> float:
    """Return the L2 norm of the difference from the base over what travels, as the enclave works it out."""
    total = 0.0
    memory = np.empty(8 * _BLOCK, dtype=np.uint8)
    for tensor in trained.part.tensors:
        numbers, reference = (as_numbers(tensor, arrays[tensor.name]).reshape(-1) for arrays in (taken, base))
        for start in range(0, numbers.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            # What overflows, or infinity less infinity: the declaration refuses what is not finite.
            with np.errstate(over="ignore", invalid="ignore"):
                total += square_of_difference(numbers[block], reference[block], memory=memory)
    return float(np.sqrt(total))
