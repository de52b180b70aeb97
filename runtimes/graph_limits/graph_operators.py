"""The operators that graphs of bundles are made of, by domain: whatever is not listed here is not run.

Each of them has a rule, which bounds the size of its results; see graph_work.py.
"""

from __future__ import annotations

ONNX = """
    Add Attention BitShift BitwiseAnd BitwiseOr BitwiseXor Cast CastLike Concat Constant Cos CumSum DequantizeLinear Div
    Equal Exp Expand Floor Gather Gelu Gemm Identity LayerNormalization LessOrEqual Loop MatMul Max Min Mul Neg NonZero
    Pad QuantizeLinear RMSNormalization Range ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape
    RotaryEmbedding Scan ScatterElements ScatterND Shape Sigmoid SimplifiedLayerNormalization Sin Slice Softmax Softplus
    Split Sqrt Squeeze Sub Swish TensorScatter Transpose Unsqueeze Where
"""
MICROSOFT = """
    CausalConvWithState DynamicQuantizeMatMul FastGelu FusedMatMul GatherBlockQuantized Gelu GroupQueryAttention
    LinearAttention LinearAttentionGate MatMulNBits MultiHeadAttention QuickGelu RotaryEmbedding SkipLayerNormalization
    SkipSimplifiedLayerNormalization
"""
LENSMITH = """
    AttentionBf16 CachedAttention CachedAttentionInt8 EnterCache MatMulInt2 MatMulInt3 MatMulInt4 MatMulInt8
    MatMulInt8Rows NormRotary NormRotaryHeads PutRows SplitQuarters UnpackInt2 UnpackInt3
"""
JOINED = tuple(f"{count}MatMulInt{bits}" for count in ("Two", "Three", "Four") for bits in (2, 3, 4, 8))
OPERATORS = {
    "": frozenset(ONNX.split()),
    "com.microsoft": frozenset(MICROSOFT.split()),
    "lensmith": frozenset((*LENSMITH.split(), *JOINED)),
    "trt": frozenset({"TRT_Attention"}),
}
OWN = ("lensmith", "trt")  # domains whose operators have functions in the file
