"""Adapters as things of their own: look into them, add them, take them out of a model, describe them."""
