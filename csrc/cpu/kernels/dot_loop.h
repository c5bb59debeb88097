// Problem: a tile of three rows by four inner products keeps all of AVX2's sixteen registers busy. Its loop has so few
//   instructions that it waits for them to be fetched where another program runs on the same core; and when GCC is to unroll it,
//   it runs out of registers, or loads a register of A again for each row of B.
// Solution: the loop written out, two registers of every row at a time: 19 instructions for 12 multiply-adds.
// Usage: if constexpr (kDotLoop<MR>) done = dot_loop(a, lda, row, k, sum, upcoming);
#pragma once

#include "cpu/kernels/gemm.h"

namespace metafast {
namespace METAFAST_ISA {

// Sanitizers would not see what is loaded; and where one of them stands between a product and its sum, GCC rounds both in the
// tiles that are not written here.
#if METAFAST_VECTOR_BYTES == 32 && defined(__FMA__) && defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)

template <int MR>
constexpr bool kDotLoop = MR == 3;

// clang-format off
#define METAFAST_DOT_STEPS(TYPE)                         \
  ".irp at, 0, 32\n"                                     \
  "vmovups \\at(%[a0],%[i]), %%ymm12\n"                  \
  "vmovups \\at(%[a1],%[i]), %%ymm13\n"                  \
  "vmovups \\at(%[a2],%[i]), %%ymm14\n"                  \
  "vmovups \\at(%[b0],%[i]), %%ymm15\n"                  \
  "vfmadd231" TYPE " %%ymm15, %%ymm12, %[s0]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm13, %[s4]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm14, %[s8]\n"          \
  "vmovups \\at(%[b1],%[i]), %%ymm15\n"                  \
  "vfmadd231" TYPE " %%ymm15, %%ymm12, %[s1]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm13, %[s5]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm14, %[s9]\n"          \
  "vmovups \\at(%[b2],%[i]), %%ymm15\n"                  \
  "vfmadd231" TYPE " %%ymm15, %%ymm12, %[s2]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm13, %[s6]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm14, %[s10]\n"         \
  "vmovups \\at(%[b3],%[i]), %%ymm15\n"                  \
  "vfmadd231" TYPE " %%ymm15, %%ymm12, %[s3]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm13, %[s7]\n"          \
  "vfmadd231" TYPE " %%ymm15, %%ymm14, %[s11]\n"         \
  ".endr\n"                                              \
  "add $64, %[i]\n"
// i goes from minus the number of bytes to zero. Either the first loop, or the second, which asks for nothing.
#define METAFAST_DOT_LOOP(TYPE)                                                                               \
  __asm__(".irp sum, %[s0], %[s1], %[s2], %[s3], %[s4], %[s5], %[s6], %[s7], %[s8], %[s9], %[s10], %[s11]\n"  \
          "vxorps \\sum, \\sum, \\sum\n"                                                                      \
          ".endr\n"                                                                                           \
          "test %[upcoming], %[upcoming]\n"                                                                   \
          "jz 2f\n"                                                                                           \
          ".p2align 6\n"                                                                                      \
          "1: prefetcht0 (%[upcoming],%[i])\n"                                                                \
          METAFAST_DOT_STEPS(TYPE)                                                                            \
          "jl 1b\n"                                                                                           \
          "jmp 3f\n"                                                                                          \
          ".p2align 6\n"                                                                                      \
          "2:\n"                                                                                              \
          METAFAST_DOT_STEPS(TYPE)                                                                            \
          "jl 2b\n"                                                                                           \
          "3:\n"                                                                                              \
          : [s0] "=&x"(s0), [s1] "=&x"(s1), [s2] "=&x"(s2), [s3] "=&x"(s3), [s4] "=&x"(s4), [s5] "=&x"(s5),   \
            [s6] "=&x"(s6), [s7] "=&x"(s7), [s8] "=&x"(s8), [s9] "=&x"(s9), [s10] "=&x"(s10),                 \
            [s11] "=&x"(s11), [i] "+&r"(i)                                                                    \
          : [a0] "r"(end), [a1] "r"(end + lda), [a2] "r"(end + 2 * lda), [b0] "r"(row[0] + done),             \
            [b1] "r"(row[1] + done), [b2] "r"(row[2] + done), [b3] "r"(row[3] + done),                        \
            [upcoming] "r"(upcoming ? upcoming + done : nullptr)                                              \
          : "ymm12", "ymm13", "ymm14", "ymm15", "cc", "memory")
// clang-format on

// sum[4 i + j] = row i of A times row[j], over the first of k elements; returns over how many. Asks for as many of `upcoming`,
// if that is not null.
template <class T>
inline __attribute__((always_inline)) int64_t dot_loop(const T* a, int64_t lda, const T* const* row, int64_t k,
                                                       Vector<T>* sum, const T* upcoming) {
  constexpr int64_t kAtOnce = 2 * kLanes<T>;
  const int64_t done = k / kAtOnce * kAtOnce;
  if (done == 0) return 0;
  int64_t i = -done * int64_t(sizeof(T));
  const T* end = a + done;
  Vector<T> s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11;  // an array would stand in memory
  if constexpr (sizeof(T) == 4)
    METAFAST_DOT_LOOP("ps");
  else
    METAFAST_DOT_LOOP("pd");
  sum[0] = s0, sum[1] = s1, sum[2] = s2, sum[3] = s3, sum[4] = s4, sum[5] = s5;
  sum[6] = s6, sum[7] = s7, sum[8] = s8, sum[9] = s9, sum[10] = s10, sum[11] = s11;
  return done;
}

#undef METAFAST_DOT_LOOP
#undef METAFAST_DOT_STEPS

#else

template <int MR>
constexpr bool kDotLoop = false;
template <class T>
inline int64_t dot_loop(const T*, int64_t, const T* const*, int64_t, Vector<T>*, const T*) {
  return 0;
}

#endif

}  // namespace METAFAST_ISA
}  // namespace metafast
