"""TensorRT's two flavours behind one switch: `tensorrt_rtx` and `tensorrt` have the same calls, save for a few."""

from __future__ import annotations

import importlib
from typing import Any

from ....targets.errors import InputError, MissingExtra

RTX, STANDARD = "tensorrt_rtx", "tensorrt"


def load_library(flavour: str) -> Any:
    """The Python module of a flavour. MissingExtra where it is not installed, InputError where it cannot start."""
    try:
        return importlib.import_module(flavour)
    except ModuleNotFoundError as error:
        if error.name != flavour:
            raise
        if flavour == STANDARD:
            raise MissingExtra("TensorRT's Python module, which JetPack brings on a Jetson,", STANDARD) from error
        raise MissingExtra("TensorRT-RTX (no module 'tensorrt_rtx')", "tensorrt-rtx") from error
    except (ImportError, OSError) as error:
        raise InputError(f"{flavour} is installed but does not load ({error}); install it again") from error
