"""Ways to start an adapter other than at zero, each from a decomposition of a weight."""
