"""How confed's parties talk: generated messages, and the gRPC channels and servers that carry them."""
