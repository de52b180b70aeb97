"""Compile vision-language models into small, exact, provable bundles, and run them without PyTorch.

`lensmith.runtimes` answers from bundles, `lensmith.exporters` makes them; each is imported by itself.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
