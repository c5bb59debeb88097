/* The machine's fused multiply-add peak: independent chains in registers, nothing else. One round is CHAINS x LANES
   multiply-adds in float32. */

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define CHAINS 12

typedef float lanes __attribute__((vector_size(4 * LANES)));

double flops_per_round(void) { return 2.0 * CHAINS * LANES; }

float peak(long rounds, float a, float b) {
    lanes c[CHAINS];
/* Every loop over the chains must be unrolled, or the array lives in memory. */
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; ++i) c[i] = (lanes){0} + (float)i;
    for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; ++i) c[i] = c[i] * a + b;
    }
    lanes sum = c[0];
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; ++i) sum += c[i];
    float total = 0;
    for (int i = 0; i < LANES; ++i) total += sum[i];
    return total;
}
