"""Quantized networks as files: packed safetensors and ONNX."""
