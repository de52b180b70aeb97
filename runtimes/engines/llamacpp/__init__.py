"""The engine of GGUF bundles: llama.cpp through the low-level interface of llama-cpp-python."""
