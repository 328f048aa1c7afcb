"""Drivers that make evidence, one for each interface that a TEE offers; chosen by name, never guessed (``choose``)."""
