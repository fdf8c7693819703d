"""Artefacts that other programs load: the tuned model as a plain Hugging Face directory."""
