/* Rounds floats to bfloat16, to the nearest and ties to even; numbers too small for a full mantissa become zero. */

/* In the low halves of words. */
INLINE Words round_bfloat16(Floats v) {
    const Words bits = (Words)v, magnitude = bits & 0x7fffffffu;
    const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u), quiet = bits | 0x400000u;
    const Words number = (Words)(magnitude <= 0x7f800000u), normal = (Words)(magnitude >= 0x800000u);
    return (((rounded & number) | (quiet & ~number)) & (normal | 0x80000000u)) >> 16;
}
