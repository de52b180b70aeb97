"""lensmith's own operators in graph files: each comes with its meaning as a function of stock operators.

Where the runtime's library has a kernel for the operator, ONNX Runtime calls it; elsewhere it puts the function's body
in the node's place. So one graph file runs everywhere, and stands for the same numbers up to rounding.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

DOMAIN, VERSION = "lensmith", 1
BLOCK_SIZES = (16, 32, 64, 128)  # of MatMulInt4

FUNCTIONS = {
    # Scales stay float16, so that the kernel reads all of the weights where the file is mapped.
    "MatMulInt4": """
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        MatMulInt4 <K, N, block_size> (A, B, scales, zero_points, bias) => (Y) {
            wide = Cast <to: int = 1> (scales)
            Y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = 4, block_size: int = @block_size,
                accuracy_level: int = 4> (A, B, wide, zero_points, "", bias)
        }
    """,
    "AttentionBf16": """
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        AttentionBf16 <num_heads> (query, key, value) => (output) {
            output = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (query, key, value)
        }
    """,
}


def add_functions(graph: ir.Graph) -> list[ir.Function]:
    """The functions of lensmith's operators in a graph, whose operator sets grow by ours when there are any."""
    used = sorted({node.op_type for node in graph if node.domain == DOMAIN})
    if used:
        graph.opset_imports[DOMAIN] = VERSION
    return [ir.serde.deserialize_function(onnx.parser.parse_function(FUNCTIONS[name])) for name in used]
