"""Loss, perplexity and the comparison of generated answers with expected ones."""
