"""One file a model family: its config.json, its fused layers, its names."""
