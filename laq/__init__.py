"""Label-aware quantization: quantize a CNN for the classes you need, and know what it cost."""
