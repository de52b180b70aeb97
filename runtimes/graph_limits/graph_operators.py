"""The operators that graphs of bundles are made of, by domain: whatever is not listed here is not run.

Each of them has a rule, which bounds the size of its results; see graph_work.py.
"""

from __future__ import annotations

from typing import NamedTuple


class Prologue(NamedTuple):
    """What a product does to its input before it is rounded: how many inputs that takes, and whether it adds one.

    A sum is an output behind those of the products.
    """

    inputs: int = 0
    adds: bool = False


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
    AttentionBf16 CachedAttention CachedAttentionInt8 EnterCache NormRotary NormRotaryHeads PutRows SplitQuarters
    UnpackInt2 UnpackInt3
"""
PACKED = tuple(f"MatMulInt{bits}" for bits in (2, 3, 4, 8))
JOINED = tuple(f"{count}{name}" for count in ("Two", "Three", "Four") for name in PACKED)
PRODUCTS = (*PACKED, *JOINED, "MatMulInt8Rows")
PROLOGUES = {
    "SkipRmsNorm": Prologue(2, adds=True),
    "SkipLayerNorm": Prologue(3, adds=True),
    **dict.fromkeys(("Gelu", "FastGelu", "QuickGelu"), Prologue()),
    **dict.fromkeys(("GatedQuickGelu", "GatedSigmoid"), Prologue(1)),
}
FUSED = {  # with its prologue and the product; what only norms have is some products of one input
    name + product: (prologue, product)
    for name, prologue in PROLOGUES.items()
    for product in PRODUCTS
    if prologue.adds or product not in JOINED
}
OPERATORS = {
    "": frozenset(ONNX.split()),
    "com.microsoft": frozenset(MICROSOFT.split()),
    "lensmith": frozenset((*LENSMITH.split(), *PRODUCTS, *FUSED)),
    "trt": frozenset({"TRT_Attention"}),
}
OWN = ("lensmith", "trt")  # domains whose operators have functions in the file
