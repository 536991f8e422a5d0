/* The peak of this core: groups of independent instructions, timed. Prints name and GMAC/s. */

#include <stdio.h>
#include <string.h>
#include <time.h>

#define GROUPS 12
/* A round lasts about a millisecond; the best of many is one that nobody else disturbed. */
#define LOOPS 100000L
#define ROUNDS 40

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Accumulators are registers 0 to 11; 12 to 15 are operands and scratch. */
#define CLEAR(r) "vxorps %%ymm" #r ", %%ymm" #r ", %%ymm" #r "\n\t"
#define ALL(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define OPERANDS CLEAR(12) CLEAR(13) CLEAR(14) CLEAR(15)

#define FMA_YMM(r) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #r "\n\t"
#define FMA_ZMM(r) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #r "\n\t"
#define PAIRS(r) "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\t" \
    "vpmaddwd %%ymm15, %%ymm14, %%ymm14\n\t" "vpaddd %%ymm14, %%ymm" #r ", %%ymm" #r "\n\t"
#define WIDE(r) "vpmaddwd %%ymm12, %%ymm13, %%ymm14\n\t" \
    "vpaddd %%ymm14, %%ymm" #r ", %%ymm" #r "\n\t"
#define ADDED "vpmaddubsw %%ymm12, %%ymm13, %%ymm15\n\t" "vpaddw %%ymm15, %%ymm14, %%ymm14\n\t"
#define FOURS(r) "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n\t" ADDED ADDED ADDED \
    "vpmaddwd %%ymm12, %%ymm14, %%ymm14\n\t" "vpaddd %%ymm14, %%ymm" #r ", %%ymm" #r "\n\t"
#define VNNI_YMM(r) "vpdpbusd %%ymm12, %%ymm13, %%ymm" #r "\n\t"
#define VNNI_ZMM(r) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #r "\n\t"

#define MEASURE(name, macs, GROUP) \
    if (!strcmp(argv[k], name)) { \
        double best = 1e30; \
        for (int again = 0; again < ROUNDS; again++) { \
            double start = seconds(); \
            long n = LOOPS; \
            __asm__ volatile(ALL(CLEAR) OPERANDS "1:\n\t" ALL(GROUP) "dec %0\n\t" "jnz 1b\n\t" \
                "vzeroupper\n\t" : "+r"(n) : : "cc", "memory", \
                "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
            double spent = seconds() - start; \
            best = spent < best ? spent : best; \
        } \
        printf("%s %.3f\n", name, (double)(macs) * GROUPS * LOOPS / best * 1e-9); \
    }

int main(int argc, char **argv) {
    for (int k = 1; k < argc; k++) {
        MEASURE("fma-256", 8, FMA_YMM)
        MEASURE("fma-512", 16, FMA_ZMM)
        MEASURE("wide-256", 16, WIDE)
        MEASURE("pairs-256", 32, PAIRS)
        MEASURE("fours-256", 128, FOURS)
        MEASURE("vnni-256", 32, VNNI_YMM)
        MEASURE("vnni-512", 64, VNNI_ZMM)
    }
    return 0;
}
