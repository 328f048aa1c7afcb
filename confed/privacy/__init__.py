"""AT WHAT COST: clipping, noise and accounting of differential privacy for the owners in a run."""
