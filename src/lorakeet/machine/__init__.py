"""What this computer is best at: fastest dtype, memory, compiling, native code, the heap for large tensors."""
