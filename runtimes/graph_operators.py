"""The operators that graphs of bundles are made of, by domain: whatever is not listed here is not run."""

from __future__ import annotations

ONNX = """
    Add And Attention BitShift BitwiseAnd BitwiseOr BitwiseXor Cast CastLike Ceil Clip Concat Constant Conv Cos CumSum
    DequantizeLinear Div Equal Exp Expand Floor Gather Gelu Gemm Greater GreaterOrEqual Identity LayerNormalization Less
    LessOrEqual Loop MatMul Max Min Mod Mul Neg NonZero Not Pad Pow QuantizeLinear RMSNormalization Range ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum Reshape RotaryEmbedding Scan ScatterND Shape Sigmoid
    SimplifiedLayerNormalization Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Swish TensorScatter Transpose
    Unsqueeze Where
"""
MICROSOFT = """
    CausalConvWithState DynamicQuantizeMatMul FastGelu FusedMatMul GatedRMSNorm GatherBlockQuantized Gelu
    GroupQueryAttention LinearAttention LinearAttentionGate MRotaryEmbedding MatMulNBits MultiHeadAttention QuickGelu
    RotaryEmbedding SkipLayerNormalization SkipSimplifiedLayerNormalization
"""
LENSMITH = "AttentionBf16 MatMulInt2 MatMulInt3 MatMulInt4 SplitQuarters UnpackInt2 UnpackInt3"
OPERATORS = {
    "": frozenset(ONNX.split()),
    "com.microsoft": frozenset(MICROSOFT.split()),
    "lensmith": frozenset(LENSMITH.split()),
    "trt": frozenset({"TRT_Attention"}),
}
OWN = ("lensmith", "trt")  # domains whose operators have functions in the file
