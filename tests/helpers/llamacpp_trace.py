"""What llama.cpp computes inside: inputs and results of chosen operations, read as its graphs run."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lensmith.runtimes.engines.contract import Floats
from lensmith.runtimes.engines.llamacpp.library import llama, mtmd

TYPES: Mapping[int, Any] = {0: np.dtype(np.float32), 1: np.dtype(np.float16)}  # ggml_type


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as llama-cpp-python 0.3.36 has it."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
    )  # fmt: skip


@dataclass
class Node:
    """One operation: its inputs that are matrices without gaps, rows [rows, width], and its result."""

    kind: str  # as llama.cpp prints it, such as GELU or MUL_MAT
    inputs: list[Any]
    result: Floats


def _matrix(address: int) -> Any:
    """A copy of a float matrix without gaps as [rows, fastest axis]; None for any other tensor."""
    tensor = GgmlTensor.from_address(address)
    dtype, width = TYPES.get(tensor.type), tensor.ne[0]
    count = int(np.prod(list(tensor.ne)))
    if dtype is None or tensor.ne[2] * tensor.ne[3] != 1 or tensor.nb[1] != width * dtype.itemsize:
        return None
    memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(tensor.data)
    return np.frombuffer(memory, dtype).reshape(-1, width).copy()


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> Iterator[list[Node]]:
    """Encoders and decoders that are loaded within write down each operation of these kinds."""
    found: list[Node] = []
    base = ctypes.CDLL(str(Path(llama().__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_op_desc.restype, base.ggml_op_desc.argtypes = ctypes.c_char_p, [ctypes.c_void_p]

    def visit(address: int, ask: bool, _: Any) -> bool:
        kind = base.ggml_op_desc(address).decode()
        if kind in kinds and ask:  # all nodes are asked for, so that those in front are computed by now
            sources = [source for source in GgmlTensor.from_address(address).src if source]
            found.append(Node(kind, [_matrix(source) for source in sources], np.zeros(0, np.float32)))
        elif kind in kinds:
            found[-1].result = _matrix(address)
        return True

    callback = llama().ggml_backend_sched_eval_callback(visit)
    for module, name in ((mtmd(), "mtmd_context_params_default"), (llama(), "llama_context_default_params")):
        monkeypatch.setattr(module, name, _with(getattr(module, name), callback))
    yield found


def _with(defaults: Any, callback: Any) -> Any:
    def options() -> Any:
        made = defaults()
        made.cb_eval = callback
        return made

    return options
