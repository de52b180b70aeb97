"""GGUF files of llama.cpp: their tensors, their metadata, and how they are written."""
