"""Proofs on the user's own model, data and machine that every fast way computes what the plain one does."""
