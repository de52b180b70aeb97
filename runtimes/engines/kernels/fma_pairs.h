/* Products of pairs of bfloat16 where no instruction takes them: as floats, the second of a pair first, as VDPBF16PS. */
typedef float Narrow; /* a value that bfloat16 has, as it is multiplied */

INLINE void store_narrow(Narrow *to, Floats v) { store_floats(to, (Floats)(round_bfloat16(v) << 16)); }

INLINE Floats dot_pair(Floats sum, const Narrow *pair, Words packed) {
    sum = multiply_add(all_floats(pair[1]), (Floats)(packed & 0xffff0000u), sum);
    return multiply_add(all_floats(pair[0]), (Floats)(packed << 16), sum);
}
