"""Ways to start an adapter other than at random, each from a decomposition: of its weight, or of its layer's inputs."""
