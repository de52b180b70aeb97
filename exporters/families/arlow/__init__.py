"""The Arlow vision encoder: its description, graph, PyTorch reference and recorded evidence."""
