"""The aggregator enclave: where sealed updates are opened, and nothing but their combination leaves."""
