"""lensmith's own operators in graph files: each comes with its meaning as a function of stock operators.

Where the runtime's library has a kernel for the operator, ONNX Runtime calls it; elsewhere it puts the function's body
in the node's place. So one graph file runs everywhere, and stands for the same numbers up to rounding.
"""

from __future__ import annotations

DOMAIN, VERSION = "lensmith", 1
BLOCK_SIZES = dict.fromkeys((4, 3, 2), (16, 32, 64, 128)) | {8: (16, 32, 64, 128, 256)}  # of MatMulInt*, by bits
JOINABLE = tuple(f"MatMulInt{bits}" for bits in BLOCK_SIZES)
JOINED = {2: "Two", 3: "Three", 4: "Four"}  # how many of one input: what the operator's name begins with


def _joined(operator: str, count: int) -> str:
    places = range(1, count + 1)
    sizes, outputs = (", ".join(f"{letter}{i}" for i in places) for letter in "NY")
    needed = ", ".join(f"B{i}, scales{i}" for i in places)
    optional = ", ".join(f"zero_points{i}, bias{i}" for i in places)
    products = "".join(
        f"""
            Y{i} = lensmith.{operator} <K: int = @K, block_size: int = @block_size, N: int = @N{i}>
                (A, B{i}, scales{i}, zero_points{i}, bias{i})"""
        for i in places
    )
    return f"""
        <opset_import: ["" : 21, "lensmith" : 1], domain: "lensmith">
        {JOINED[count]}{operator} <K, block_size, {sizes}> (A, {needed}, {optional}) => ({outputs}) {{{products}
        }}
    """


FUNCTIONS = {
    # Scales stay float16, so that the kernel reads all of the weights where the file is mapped.
    **{
        f"MatMulInt{bits}": f"""
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        MatMulInt{bits} <K, N, block_size> (A, B, scales, zero_points, bias) => (Y) {{
            wide = Cast <to: int = 1> (scales)
            Y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = {bits}, block_size: int = @block_size,
                accuracy_level: int = 4> (A, B, wide, zero_points, "", bias)
        }}
    """
        for bits in (8, 4)
    },
    # The kernel rounds activations in blocks of 256, which is finer than ONNX Runtime's rounding of a whole tensor.
    "MatMulInt8Rows": """
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        MatMulInt8Rows (A, B, scales, bias) => (Y) {
            columns_first = Transpose <perm = [1, 0]> (B)
            wide = Cast <to: int = 1> (scales)
            Y = com.microsoft.DynamicQuantizeMatMul (A, columns_first, wide, "", bias)
        }
    """,
    # 2 and 3 bits as 4: MatMulNBits knows no 3 bits, and 2 of them only on some processors without unpacking all
    # weights in each step. On constants this is done once, when the graph is loaded.
    # v + 6 of two bits: the upper one and, twice, its opposite, then the lower one.
    "UnpackInt2": """
        <opset_import: ["" : 21, "lensmith" : 1], domain: "lensmith">
        UnpackInt2 (B) => (Y) {
            one = Constant <value = uint8 {1}> ()
            two = Constant <value = uint8 {2}> ()
            lower_bits = Constant <value = uint8 {17}> ()
            upper_bits = Constant <value = uint8 {34}> ()
            pairs = lensmith.SplitQuarters (B)
            lower = BitwiseAnd (pairs, lower_bits)
            upper = BitwiseAnd (pairs, upper_bits)
            opposite = BitwiseXor (upper, upper_bits)
            eight = BitShift <direction: string = "LEFT"> (upper, two)
            four = BitShift <direction: string = "LEFT"> (opposite, one)
            both = BitwiseOr (eight, four)
            three = BitwiseOr (both, opposite)
            Y = BitwiseOr (three, lower)
        }
    """,
    # v + 4 of three bits: the top one and its opposite, then the low two.
    "UnpackInt3": """
        <opset_import: ["" : 21, "lensmith" : 1], domain: "lensmith">
        UnpackInt3 (B) => (Y) {
            one = Constant <value = uint8 {1}> ()
            two = Constant <value = uint8 {2}> ()
            five = Constant <value = uint8 {5}> ()
            top_bits = Constant <value = uint8 {68}> ()
            shifts = Constant <value = uint8[4] {0, 2, 4, 6}> ()
            rows = Constant <value = int64[2] {0, -1}> ()
            last = Constant <value = int64[1] {-1}> ()
            low, low_too, top = Split <axis: int = 1, num_outputs: int = 3> (B)
            low_bytes = Concat <axis: int = 1> (low, low_too)
            pairs = lensmith.SplitQuarters (low_bytes)
            eights = Unsqueeze (top, last)
            spread = BitShift <direction: string = "RIGHT"> (eights, shifts)
            evens = BitwiseAnd (spread, one)
            odds = BitwiseAnd (spread, two)
            even_tops = BitShift <direction: string = "LEFT"> (evens, two)
            odd_tops = BitShift <direction: string = "LEFT"> (odds, five)
            all_tops = BitwiseOr (even_tops, odd_tops)
            tops = Reshape (all_tops, rows)
            opposite = BitwiseXor (tops, top_bits)
            eight = BitShift <direction: string = "LEFT"> (tops, one)
            both = BitwiseOr (eight, opposite)
            Y = BitwiseOr (both, pairs)
        }
    """,
    # Four values of two bits in each byte, as two bytes of two values each. Shifts by a vector would take longer.
    "SplitQuarters": """
        <opset_import: ["" : 21], domain: "lensmith">
        SplitQuarters (B) => (Y) {
            two = Constant <value = uint8 {2}> ()
            four = Constant <value = uint8 {4}> ()
            low_bits = Constant <value = uint8 {3}> ()
            high_bits = Constant <value = uint8 {48}> ()
            rows = Constant <value = int64[2] {0, -1}> ()
            last = Constant <value = int64[1] {-1}> ()
            first = BitwiseAnd (B, low_bits)
            left = BitShift <direction: string = "LEFT"> (B, two)
            second = BitwiseAnd (left, high_bits)
            behind = BitShift <direction: string = "RIGHT"> (B, four)
            third = BitwiseAnd (behind, low_bits)
            right = BitShift <direction: string = "RIGHT"> (B, two)
            fourth = BitwiseAnd (right, high_bits)
            one_byte = BitwiseOr (first, second)
            next_byte = BitwiseOr (third, fourth)
            even = Unsqueeze (one_byte, last)
            odd = Unsqueeze (next_byte, last)
            both = Concat <axis: int = -1> (even, odd)
            Y = Reshape (both, rows)
        }
    """,
    **{
        f"MatMulInt{bits}": f"""
        <opset_import: ["" : 21, "com.microsoft" : 1, "lensmith" : 1], domain: "lensmith">
        MatMulInt{bits} <K, N, block_size> (A, B, scales, zero_points, bias) => (Y) {{
            outputs = Constant <value_int: int = @N> ()
            block = Constant <value_int: int = @block_size> ()
            any = Constant <value = int64[1] {{-1}}> ()
            two = Constant <value = int64 {{2}}> ()
            block_bytes = Div (block, two)
            rows = Reshape (outputs, any)
            bytes = Reshape (block_bytes, any)
            shape = Concat <axis: int = 0> (rows, any, bytes)
            unpacked = lensmith.UnpackInt{bits} (B)
            blocks = Reshape (unpacked, shape)
            wide = Cast <to: int = 1> (scales)
            Y = com.microsoft.MatMulNBits <K: int = @K, N: int = @N, bits: int = 4, block_size: int = @block_size,
                accuracy_level: int = 4> (A, blocks, wide, zero_points, "", bias)
        }}
    """
        for bits in (2, 3)
    },
    # The kernel rounds activations once for all.
    **{JOINED[count] + operator: _joined(operator, count) for operator in JOINABLE for count in JOINED},
    "AttentionBf16": """
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        AttentionBf16 <num_heads> (query, key, value) => (output) {
            output = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (query, key, value)
        }
    """,
    # New keys and values enter the cache in float16, in place where the caller bound past and present to one buffer;
    # attention reads the part of the cache that counts, in float32.
    "CachedAttention": """
        <opset_import: ["" : 21, "com.microsoft" : 1, "lensmith" : 1], domain: "lensmith">
        CachedAttention <num_heads, kv_num_heads> (query, key, value, past_key, past_value, past_lengths)
                => (output, present_key, present_value) {
            first = Constant <value = int64[1] {0}> ()
            sequence = Constant <value = int64[1] {2}> ()
            kv_heads = Constant <value_int: int = @kv_num_heads> ()
            any = Constant <value = int64[1] {-1}> ()
            heads = Reshape (kv_heads, any)
            split = Concat <axis: int = 0> (first, first, heads, any)
            short_key, new_key = lensmith.EnterCache (key, split)
            short_value, new_value = lensmith.EnterCache (value, split)
            present_key = lensmith.PutRows (past_key, short_key, past_lengths)
            present_value = lensmith.PutRows (past_value, short_value, past_lengths)
            count = Shape <start: int = 1, end: int = 2> (query)
            new = Cast <to: int = 6> (count)
            lengths = Add (past_lengths, new)
            one = Constant <value = int32 {1}> ()
            last = Sub (lengths, one)
            total = ReduceMax <keepdims: int = 0> (lengths)
            longest = Cast <to: int = 7> (total)
            end = Reshape (longest, any)
            keys = Slice (present_key, first, end, sequence)
            values = Slice (present_value, first, end, sequence)
            wide_keys = Cast <to: int = 1> (keys)
            wide_values = Cast <to: int = 1> (values)
            output, all_keys, all_values = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
                kv_num_heads: int = @kv_num_heads> (query, new_key, new_value, wide_keys, wide_values, last, total)
        }
    """,
    # The same with a cache of int8, a scale for each channel: ONNX Runtime's own is several times as slow in prompts.
    "CachedAttentionInt8": """
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        CachedAttentionInt8 <num_heads, kv_num_heads>
                (query, key, value, past_key, past_value, past_lengths, key_scales, value_scales)
                => (output, present_key, present_value) {
            count = Shape <start: int = 1, end: int = 2> (query)
            new = Cast <to: int = 6> (count)
            lengths = Add (past_lengths, new)
            one = Constant <value = int32 {1}> ()
            last = Sub (lengths, one)
            total = ReduceMax <keepdims: int = 0> (lengths)
            output, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
                kv_num_heads: int = @kv_num_heads, k_quant_type: string = "PER_CHANNEL",
                v_quant_type: string = "PER_CHANNEL", kv_cache_bit_width: int = 8>
                (query, key, value, past_key, past_value, last, total, "", "", "", "", "", key_scales, value_scales)
        }
    """,
    # The kernel goes through each token's heads once.
    "NormRotary": """
        <opset_import: ["" : 21, "lensmith" : 1], domain: "lensmith">
        NormRotary <num_heads, kv_num_heads, rotary_embedding_dim, epsilon>
                (query, key, query_weight, key_weight, positions, cos, sin) => (rotated_query, rotated_key) {
            rotated_query = lensmith.NormRotaryHeads <num_heads: int = @num_heads,
                rotary_embedding_dim: int = @rotary_embedding_dim, epsilon: float = @epsilon>
                (query, query_weight, positions, cos, sin)
            rotated_key = lensmith.NormRotaryHeads <num_heads: int = @kv_num_heads,
                rotary_embedding_dim: int = @rotary_embedding_dim, epsilon: float = @epsilon>
                (key, key_weight, positions, cos, sin)
        }
    """,
    # RMS norm of each head of [batch, seq, heads * width], and the rotation of its first values.
    "NormRotaryHeads": """
        <opset_import: ["" : 21, "com.microsoft" : 1], domain: "lensmith">
        NormRotaryHeads <num_heads, rotary_embedding_dim, epsilon> (X, weight, positions, cos, sin) => (Y) {
            same = Constant <value = int64[2] {0, 0}> ()
            any = Constant <value = int64[1] {-1}> ()
            count = Constant <value_int: int = @num_heads> ()
            heads = Reshape (count, any)
            width = Shape (weight)
            all_widths = Mul (heads, width)
            split = Concat <axis: int = 0> (same, heads, width)
            whole = Concat <axis: int = 0> (same, all_widths)
            each = Reshape (X, split)
            normed = SimplifiedLayerNormalization <axis: int = -1, epsilon: float = @epsilon, stash_type: int = 1>
                (each, weight)
            together = Reshape (normed, whole)
            Y = com.microsoft.RotaryEmbedding <interleaved: int = 0, num_heads: int = @num_heads,
                rotary_embedding_dim: int = @rotary_embedding_dim> (together, positions, cos, sin)
        }
    """,
    # [batch, seq, heads * width] as float16 [batch, heads, seq, width], and as it came but rounded so.
    "EnterCache": """
        <opset_import: ["" : 21], domain: "lensmith">
        EnterCache (X, split) => (rows, rounded) {
            most = Constant <value = float {65504.0}> ()
            least = Constant <value = float {-65504.0}> ()
            above = Max (X, least)
            inside = Min (above, most)
            short = Cast <to: int = 10> (inside)
            heads = Reshape (short, split)
            rows = Transpose <perm = [0, 2, 1, 3]> (heads)
            rounded = Cast <to: int = 1> (short)
        }
    """,
    # Rows [batch, heads, seq, width] into a cache, behind so many of each batch row.
    "PutRows": """
        <opset_import: ["" : 21], domain: "lensmith">
        PutRows (cache, rows, lengths) => (present) {
            zero = Constant <value = int64 {0}> ()
            one = Constant <value = int64 {1}> ()
            around = Constant <value = int64[3] {1, 2, 3}> ()
            behind = Constant <value = int64[1] {1}> ()
            sequence = Shape <start: int = 2, end: int = 3> (rows)
            count = Squeeze (sequence)
            new = Range (zero, count, one)
            column = Unsqueeze (new, behind)
            past = Cast <to: int = 7> (lengths)
            starts = Unsqueeze (past, around)
            places = Add (starts, column)
            shape = Shape (rows)
            indices = Expand (places, shape)
            present = ScatterElements <axis: int = 2> (cache, indices, rows)
        }
    """,
}
