"""Layers whose frozen weight is stored in 4 or 8 bits."""
