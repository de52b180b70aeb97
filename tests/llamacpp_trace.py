"""What llama.cpp's vision encoder computes inside: the inputs and results of its GELUs, read as its graph runs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engine import Floats
from lensmith.runtimes.llamacpp.library import llama, mtmd

GELUS = (b"GELU", b"GELU_QUICK")


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as llama-cpp-python 0.3.36 has it."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip


@dataclass
class Gelu:
    """One activation of a whole graph: rows [tokens, width] before and behind it."""

    kind: str
    before: Floats
    behind: Floats


def _rows(address: int) -> Floats:
    """A copy of a contiguous float32 tensor as [rows, fastest axis]."""
    tensor = GgmlTensor.from_address(address)
    count = int(np.prod(list(tensor.ne)))
    values = (ctypes.c_float * count).from_address(tensor.data)
    return np.array(values, np.float32).reshape(-1, tensor.ne[0])


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Gelu]]:
    """Encoders that are loaded within write down each GELU that they compute."""
    found: list[Gelu] = []
    base = ctypes.CDLL(str(Path(llama().__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_op_desc.restype, base.ggml_op_desc.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

    @llama().ggml_backend_sched_eval_callback  # type: ignore[untyped-decorator]
    def visit(address: int, ask: bool, _: Any) -> bool:
        kind = base.ggml_op_desc(address)
        if kind in GELUS and ask:  # all nodes are asked for, so that those in front are computed by now
            found.append(Gelu(kind.decode(), _rows(GgmlTensor.from_address(address).src[0]), np.zeros(0)))
        elif kind in GELUS:
            found[-1].behind = _rows(address)
        return True

    defaults = mtmd().mtmd_context_params_default

    def options() -> Any:
        made = defaults()
        made.cb_eval = visit
        return made

    monkeypatch.setattr(mtmd(), "mtmd_context_params_default", options)
    yield found
