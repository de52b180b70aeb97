/* Products of four bytes a lane (FEAT_DotProd). */
INLINE Partial dot(Partial sum, Bytes weights, Ints four) {
    return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)weights, (int8x16_t)four);
}
INLINE Partial dot_word(Partial sum, Bytes weights, Inputs inputs, size_t word) {
    const int32x4_t before = (int32x4_t)sum;
    const int8x16_t w = (int8x16_t)weights;
    return (Ints)(word ? vdotq_lane_s32(before, w, inputs, 1) : vdotq_lane_s32(before, w, inputs, 0));
}
