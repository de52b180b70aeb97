"""The cuda dialect: ONNX Runtime operators with CUDA kernels, activations of 16 bits, nothing decided on the host.

Shapes follow from shapes alone, and what a kernel reads on the host is an input: so a step for one token can be
recorded once and replayed as a CUDA graph. ONNX Runtime's CPU kernels run the same file but for bfloat16, which proves
its numbers without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...graphs.dialect import Angles, Ports
from ...graphs.graph_terms import Op, Value
from ...graphs.matrices import Matrix, Table
from ...storage.scheme import Scheme
from ..indexed_dialect import Indexed
from .ort import OrtDialect
from .ort_attention import MS


@dataclass(frozen=True)
class CudaDialect(Indexed, OrtDialect):
    """Operators for ONNX Runtime's CUDA provider; the memory of the delta rule and its gates stay in float32."""

    activations: str = "float16"
    accuracy_level: int = 0  # MatMulNBits reads activations as they are
    opsets: ClassVar[dict[str, int]] = {"": 24, MS: 1}  # RotaryEmbedding without positions is of 23

    @property
    def ports(self) -> Ports:
        return Ports(batch=1, states=self.dtype, indexed=True, lengths=True)

    def matrix(self, rows: int, columns: int, scheme: Scheme) -> Matrix:
        return Matrix(rows, columns, scheme, floats=self.dtype)

    def table(self, rows: int, columns: int, scheme: Scheme, *, shared: bool) -> Table:
        return Table(rows, columns, scheme, shared=shared, floats=self.dtype)

    def matmul(self, op: Op, x: Value, weight: Matrix, bias: Value | None) -> Value:
        """x [..., columns] times the transposed weight, plus bias: [..., rows]; float32 for weights stored so."""
        wide = weight.scheme.bits == 32
        y = super().matmul(op, self.leave(op, x) if wide else x, weight, None)
        if bias is None:
            return y
        return op.Add(y, bias if wide else self.enter(op, bias))

    def biased_attention(
        self, op: Op, q: Value, k: Value, v: Value, heads: int, bias: Value, reach: Value | None
    ) -> Value:
        """As of OrtDialect, of all queries at once: the kernel keeps no scores."""
        return op.MultiHeadAttention(q, k, v, None, None, bias, num_heads=heads, _domain=MS)

    def rotary(self, op: Op, x: Value, angles: Angles, heads: int) -> Value:
        """Rotate x [1, seq, heads * head_dim] by half-split pairs."""
        cos, sin = (op.Unsqueeze(table, [0]) for table in (angles.cos, angles.sin))
        return op.RotaryEmbedding(x, cos, sin, interleaved=0, num_heads=heads, rotary_embedding_dim=angles.size)
