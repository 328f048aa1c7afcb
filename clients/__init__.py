"""Ready ClientApps for partner sites, and the client TEE's entry point (``python -m clients``)."""
