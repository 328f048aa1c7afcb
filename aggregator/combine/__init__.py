"""The mathematics of a round: the weighted mean over chunks, and the server optimizer that is applied to it."""
