/* Sums of products of four bytes a lane, where an instruction adds them to 32 bits: no number of words is too many. */
typedef Ints Partial;
INLINE Partial begin(Ints sum) { return sum; }
INLINE Ints finish(Partial sum, Ints before) {
    (void)before; /* it began with them */
    return sum;
}
enum { PARTIAL_WORDS = CHUNK / 4 };
