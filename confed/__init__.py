"""confed: confidential federated learning, sealed from owner to owner."""

__version__ = "0.1.0"
