"""Ready engines for inference TEEs: what a manifest of the scenario ``inference`` names as its engine."""
