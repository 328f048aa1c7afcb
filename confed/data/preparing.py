"""What a client TEE does with an opened dataset before an app sees it: contract, then cleaning, then labels."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from confed.data.checking import ROWS, Finding, broken, check
from confed.data.cleaning import clean
from confed.data.dataset import SealedDataset
from confed.data.labels import label
from confed.preparation.contract import REFUSE
from confed.preparation.terms import PreparationTerms


def prepare(dataset: SealedDataset, terms: PreparationTerms) -> tuple[pl.DataFrame, pa.Table]:
    """Return the table as it kept its contract, and what an app gets of it.

    Columns that the contract does not name are never opened.

    Raises:
        ContractError: the dataset breaks the contract.
        ColumnError, EmptyDatasetError, ClassCountError: a step or a labelling function that it does not fit.
        UnreadableDataError, TamperedError: a dataset that cannot be read.
    """
    contract = terms.contract
    rows = dataset.row_count
    if not contract.rows.least <= rows <= contract.rows.most:
        # Before any row is opened: who sealed too many would have this TEE run out of memory.
        raise broken((Finding(column="", check=ROWS, count=rows),))
    there = dataset.schema.names
    wanted = there if contract.others == REFUSE else [name for name in there if name in contract.columns]
    checked = check(dataset.read(wanted), contract)
    frame = clean(checked, terms.pipeline.parsed)
    if terms.pipeline.labels is not None:
        frame = label(frame, terms.pipeline.labels)
    return checked, frame.to_arrow()
