"""WHEN a key goes: the owner's broker, which appraises, counts, records and only then wraps a key."""
