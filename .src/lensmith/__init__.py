"""Compile vision-language models into small, exact, provable bundles, and run them without PyTorch.

`lensmith.runtimes` answers from bundles, `lensmith.exporters` makes them; each is imported by itself.
`lensmith.pipeline` is transformers' "image-text-to-text" over a bundle.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "pipeline"]


def __getattr__(name: str) -> Any:
    """`pipeline`, imported when it is asked for: what makes bundles needs no runtime."""
    if name == "pipeline":
        from .runtimes.generation.hf_pipeline import pipeline

        return pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
