"""Checkpoints whose weights are quantized already: their tensors as floats, computed when they are read."""
