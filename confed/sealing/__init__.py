"""HOW it travels: the sealed container, who it is sealed for, and the keys between them."""
