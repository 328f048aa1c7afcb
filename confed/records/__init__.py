"""WHAT REMAINS of a run: the run directory, its offline verification and its report."""
