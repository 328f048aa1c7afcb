"""WHAT IS DONE to a site's table in its TEE before an app sees it: contract, cleaning, labels; documents, no data."""
