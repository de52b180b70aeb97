"""What dialects share in whose graphs no value decides a shape: indices come as inputs of the runtime."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graphs.graph_terms import Op, Value

F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64
FLOATS = {"float32": F32, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Places:
    """Where a token stands: for each position [1, seq] whether, and which of all of them."""

    found: Value  # bool
    rank: Value  # int64; of positions without the token: -1 or more


@dataclass(frozen=True)
class Indexed:
    """Activations of one float type, a name of FLOATS; image tokens and positions chosen by index. The batch is 1."""

    activations: str

    @property
    def dtype(self) -> ir.DataType:
        return FLOATS[self.activations]

    def enter(self, op: Op, x: Value) -> Value:
        """float32 as the type of activations."""
        return x if self.dtype == F32 else op.Cast(x, to=self.dtype)

    def leave(self, op: Op, x: Value) -> Value:
        """Activations as float32."""
        return x if self.dtype == F32 else op.Cast(x, to=F32)

    def places(self, op: Op, input_ids: Value, token: int) -> Places:
        found = op.Equal(input_ids, [token])
        count = op.CumSum(op.Cast(found, to=I64), op.Constant(value_int=1))
        return Places(found, op.Sub(count, [1]))

    def put(self, op: Op, x: Value, places: Places, rows: Value) -> Value:
        """x [1, seq, columns] with the rows [found, columns] in its places; at least one row, which may be for none."""
        return op.Where(op.Unsqueeze(places.found, [2]), self._spread(op, places, rows), x)

    def add_at(self, op: Op, x: Value, places: Places, rows: Value) -> Value:
        """x [1, seq, columns] with the rows [found, columns] added in its places; rows as of `put`."""
        spread, nothing = self._spread(op, places, rows), self.enter(op, op.Constant(value_float=0.0))
        return op.Add(x, op.Where(op.Unsqueeze(places.found, [2]), spread, nothing))

    def _spread(self, op: Op, places: Places, rows: Value) -> Value:
        """For each position the row of its token, or any."""
        return op.Gather(self.enter(op, rows), op.Max(places.rank, [0]), axis=0)

    def choose(self, op: Op, wanted: Value, count: Value) -> Value:
        """The input says which positions: int64 [chosen]."""
        return wanted

    def keep(self, op: Op, x: Value, chosen: Value) -> Value:
        """The chosen positions of x [1, seq, ...]."""
        return op.Gather(x, chosen, axis=1)
