/* Numbers too small for a full mantissa as zeros, where float products are taken: VDPBF16PS knows no others. */

#if defined(__x86_64__)
INLINE unsigned flush_tiny_numbers(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* results, and what goes in */
    return before;
}
INLINE void restore_numbers(unsigned before) { _mm_setcsr(before); }
#else
INLINE unsigned flush_tiny_numbers(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" ::"r"(before | 1u << 24));
    return (unsigned)before;
}
INLINE void restore_numbers(unsigned before) { __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)before)); }
#endif
