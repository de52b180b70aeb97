"""What graphs are described with: operators, values and ports."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

Op = Any  # onnxscript's OpBuilder: operators are attributes made on demand


Value = Any  # ir.Value


Port = tuple[ir.DataType, list[Any]]  # type and shape of an input or output
