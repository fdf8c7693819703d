"""LoRA layers for any PyTorch module, and adapters in PEFT's format. Knows nothing of Phi-3."""
