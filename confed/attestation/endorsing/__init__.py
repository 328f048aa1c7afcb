"""Where endorsements come from: what evidence needs, the vendors' services, and bounded fetching from them."""
