"""Qwen3.5, with its decoder alone as another type of models."""
