"""flash-attn, compiled for the GPUs of a machine and the torch of an engine."""
