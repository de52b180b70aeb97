"""Bundles for TensorRT: what can be asked of them, and their engines."""
