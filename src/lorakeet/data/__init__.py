"""From files to packed batches: read, recognise, encode, prove, pack. Knows nothing of models."""
