"""The adapter to Flower 1.41: messages as bytes, its HTTP APIs, and a host that answers with a ClientApp."""
