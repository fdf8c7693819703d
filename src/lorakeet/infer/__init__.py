"""Generation with a key-value cache: one engine for chat, evaluation and serving."""
