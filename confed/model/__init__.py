"""WHAT travels: tensors as safetensors, and what an update says about itself."""
