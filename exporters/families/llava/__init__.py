"""LLaVA with a CLIP tower."""
