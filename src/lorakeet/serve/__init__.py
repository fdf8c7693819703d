"""The OpenAI-compatible server: one engine, one base model, any number of adapters."""
