"""Operations from tensors to tensors, without modules: attention, rotary positions, LoRA products, cross entropy."""
