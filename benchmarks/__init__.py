"""One file per figure in the README; each prints what it measured and what limits it."""
