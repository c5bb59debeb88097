// The products of conv2d_staged.cuh by tensor cores, for float where the call allows TF32. Operands are rounded on their way
// into shared memory; sums are float's, folded as in staged.cuh, but in an order that is the hardware's.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/primitives/conv2d_staged.cuh"

namespace metafast {
namespace METAFAST_ISA {

// A warp makes 16x32 outputs by four products of 8 columns. Those of product i are every fourth column, from i on: so a
// lane reads what it needs of the right operand by quads, and its outputs are quads.
struct Tf32Form {
  static constexpr int kPitch = kTileEdge + 8;  // what a warp reads at once, four k by eight, lies in different banks
  int32_t warp, lane, left, right;              // and where what the lane reads begins in a slice of either operand

  __device__ explicit Tf32Form(int worker) : warp(worker / 32), lane(worker % 32) {
    left = lane % 4 * kPitch + warp % 4 * 16 + lane / 4;
    right = lane % 4 * kPitch + warp / 4 * 32 + lane / 4 * 4;
  }
  __device__ int32_t row(int i) const { return warp % 4 * 16 + lane / 4 + i / 2 * 8; }
  __device__ int32_t column(int i) const { return warp / 4 * 32 + lane % 4 * 8 + i % 2 * 4; }
  static __device__ float stored(float x) { return round_to_tf32(x); }
  __device__ void multiply(const float* slice_a, const float* slice_b, float (&part)[4][4]) const {
    for (int k0 = 0; k0 < kSlice; k0 += 8) {
      const float *a = slice_a + k0 * kPitch + left, *b = slice_b + k0 * kPitch + right;
      const float of_a[4] = {a[0], a[8], a[4 * kPitch], a[4 * kPitch + 8]};
      const Quad<float> first = load4(b), second = load4(b + 4 * kPitch);
      for (int i = 0; i < 4; ++i) {
        const float of_b[2] = {first.v[i], second.v[i]};
        float d[4];
        for (int j = 0; j < 4; ++j) d[j] = part[j][i];
        mma_tf32(d, of_a, of_b);
        for (int j = 0; j < 4; ++j) part[j][i] = d[j];
      }
    }
  }
};

// The schedule asks for none in double.
template <class T, class P>
struct OnlyFloat : PhaseDefaults {
  static constexpr bool kPersistent = false;
  static __device__ void run(const Frame<T>&, const Node&, const Block&) {}
};
template <class P>
struct OnlyFloat<float, P> : P {};

template <class T>
struct ConvForwardTf32 : OnlyFloat<T, ConvForwardBy<float, Tf32Form>> {};
template <class T>
struct ConvInputGradientTf32 : OnlyFloat<T, ConvInputGradientBy<float, Tf32Form>> {};
template <class T>
struct ConvWeightGradientTf32 : OnlyFloat<T, ConvWeightGradientBy<float, Tf32Form>> {};
template <class T>
struct LinearForwardTf32 : OnlyFloat<T, LinearForwardBy<float, Tf32Form>> {};
template <class T>
struct LinearInputGradientTf32 : OnlyFloat<T, LinearInputGradientBy<float, Tf32Form>> {};
template <class T>
struct LinearWeightGradientTf32 : OnlyFloat<T, LinearWeightGradientBy<float, Tf32Form>> {};

}  // namespace METAFAST_ISA
}  // namespace metafast
