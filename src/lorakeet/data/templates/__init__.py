"""Chat templates: known ones as data, the model's own in a sandbox."""
