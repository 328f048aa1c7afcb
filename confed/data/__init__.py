"""FROM WHAT: sealed tables, contract checks, cleaning and labels; opened and worked on only inside a client TEE.

Needs the extra ``data`` (pyarrow, polars, pandera, cleanlab); nobody imports it who holds no data: no broker, no
governor, no aggregator.
"""
