// Tensor cores: a product in TF32, which has float's exponent and 10 of its 23 bits of mantissa, made by a warp together.
#pragma once

#include "core/scalar.h"
#include "cuda/launch.h"

namespace metafast {
namespace METAFAST_ISA {

// The nearest number of TF32, ties away from zero. (The hardware by itself would drop the bits it does not use.)
static __device__ inline float round_to_tf32(float x) {
#if !defined(__CUDACC__)
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  bits = is_nan ? 0x7fffffffu : (bits + 0x1000u) & ~0x1fffu;
  memcpy(&x, &bits, sizeof bits);
  return x;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return x;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#endif
}

// D += A B for A of 16x8, B of 8x8. All lanes of a warp call it together. With g = lane / 4, t = lane % 4, a lane has
//   a: A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]
//   b: B[t][g], B[t + 4][g]
//   d: D[g][2 t], D[g][2 t + 1], D[g + 8][2 t], D[g + 8][2 t + 1]
static __device__ inline void mma_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
#if !defined(__CUDACC__)
  struct {
    float a[4], b[2];
  } mine, all[32];
  const auto truncated = [](float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= ~0x1fffu;
    memcpy(&x, &bits, sizeof bits);
    return x;
  };
  for (int i = 0; i < 4; ++i) mine.a[i] = truncated(a[i]);
  for (int i = 0; i < 2; ++i) mine.b[i] = truncated(b[i]);
  shim::gather(&mine, sizeof mine, all);
  const int lane = int(threadIdx.x % 32);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 8; ++k)
      d[i] += all[row % 8 * 4 + k % 4].a[k / 4 * 2 + row / 8] * all[column * 4 + k % 4].b[k / 4];
  }
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  __trap();  // device.py asks for none on such a device
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

}  // namespace METAFAST_ISA
}  // namespace metafast
