"""From an experiment file to a finished run: configuration, resolution to a manifest, launch, records."""
