"""Moves the sealed model and the sealed updates, and holds no key."""
