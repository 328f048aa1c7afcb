"""Ready tasks: each a model, a training loop and a confidential ClientApp."""
