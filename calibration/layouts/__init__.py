"""Bytes of quantized weights as engines other than ONNX Runtime's CPU kernels read them."""
