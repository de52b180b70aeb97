#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };                             /* leaf 1, ecx */
enum { AVX2 = 1 << 5, AVX512_F_DQ_BW = 1 << 16 | 1 << 17 | 1 << 30, VNNI = 1 << 11 };  /* leaf 7, ebx; VNNI: ecx */
enum { AVX_VNNI_BIT = 1 << 4, BF16 = 1 << 5 };                                         /* leaf 7.1, eax */
static const unsigned AVX512_VL = 1u << 31;                                            /* leaf 7, ebx */
enum { YMM_STATE = 0x06, ZMM_STATE = 0xe6 }; /* registers that the system keeps for each thread */

static unsigned kept_registers(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has(unsigned word, unsigned bits) { return (word & bits) == bits; }

unsigned cpu_features(void) {
    unsigned a, b, c, d, basic, unused, more = 0, found = 0;
    if (!__get_cpuid(1, &a, &b, &basic, &d) || !has(basic, FMA | OSXSAVE | F16C)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, AVX2)) return 0;
    if (a) __cpuid_count(7, 1, more, unused, unused, unused);
    const unsigned kept = kept_registers();
    if (!has(kept, YMM_STATE)) return 0;
    found = AVX2_FMA_F16C;
    if (has(more, AVX_VNNI_BIT)) found |= AVX_VNNI;
    if (!has(kept, ZMM_STATE) || !has(b, AVX512_F_DQ_BW) || !has(b, AVX512_VL) || !has(c, VNNI)) return found;
    return found | AVX512_VNNI | (has(more, BF16) ? AVX512_BF16 : 0);
}

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20) & 1; }       /* HWCAP_ASIMDDP */
static int has_i8mm_bf16(void) { return (getauxval(AT_HWCAP2) >> 13 & 3) == 3; } /* HWCAP2_I8MM, HWCAP2_BF16 */
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has(const char *feature) {
    int value = 0;
    size_t size = sizeof value;
    return !sysctlbyname(feature, &value, &size, 0, 0) && value;
}
static int has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm_bf16(void) { return has("hw.optional.arm.FEAT_I8MM") && has("hw.optional.arm.FEAT_BF16"); }
#elif defined(_WIN32)
#include <windows.h>
static int has_dotprod(void) { return IsProcessorFeaturePresent(43); } /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
/* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE, PF_ARM_V86_BF16_INSTRUCTIONS_AVAILABLE; older systems know neither */
static int has_i8mm_bf16(void) { return IsProcessorFeaturePresent(66) && IsProcessorFeaturePresent(68); }
#else
static int has_dotprod(void) { return 0; }
static int has_i8mm_bf16(void) { return 0; }
#endif

unsigned cpu_features(void) { return NEON | (has_dotprod() ? NEON_DOTPROD : 0) | (has_i8mm_bf16() ? NEON_I8MM_BF16 : 0); }

#else
unsigned cpu_features(void) { return 0; }
#endif
