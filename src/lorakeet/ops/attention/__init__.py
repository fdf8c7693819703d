"""Causal attention over packed documents: one entry, its slow reference, and a backend for each kind of machine."""
