"""The Phi-3 decoder, its weights on disk, and the names under which models are found."""
