"""Scale laws: how a power-of-two scale moves through each op."""
