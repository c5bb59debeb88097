// Between the user's layouts and the engine's: parameters [outputs, inputs, taps] to [taps][inputs][ld], values
// [channels, height, width] to [height * width][ld]. Pads are written as zero.
#pragma once

#include <string.h>

#include "../isa.h"
#include "../plan.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
static void parameter_in(const ParameterPlan& p, const T* __restrict user, T* __restrict out) {
  for (int64_t tap = 0; tap < p.taps; ++tap)
    for (int64_t i = 0; i < p.inputs; ++i, out += p.ld) {
      for (int64_t o = 0; o < p.outputs; ++o) out[o] = user[(o * p.inputs + i) * p.taps + tap];
      for (int64_t o = p.outputs; o < p.ld; ++o) out[o] = T(0);
    }
}

template <class T>
static void parameter_out(const ParameterPlan& p, const T* __restrict in, T* __restrict user) {
  for (int64_t tap = 0; tap < p.taps; ++tap)
    for (int64_t i = 0; i < p.inputs; ++i, in += p.ld)
      for (int64_t o = 0; o < p.outputs; ++o) user[(o * p.inputs + i) * p.taps + tap] = in[o];
}

// Calls body(index in the user's [channels, height, width] or [rows, channels], index inside) for every element.
template <class Body>
static void for_elements(const Value& v, int64_t examples, int64_t ld, Body body) {
  const int64_t size = v.rows * v.channels;
  for (int64_t n = 0; n < examples; ++n)
    for (int64_t r = 0; r < v.rows; ++r)
      for (int64_t c = 0; c < v.channels; ++c)
        body(n * size + (v.height > 0 ? c * v.rows + r : r * v.channels + c), (n * v.rows + r) * ld + c);
}

template <class T>
static void value_in(const Value& v, int64_t examples, int64_t ld, const T* __restrict user, T* __restrict out) {
  for_elements(v, examples, ld, [&](int64_t from, int64_t to) { out[to] = user[from]; });
  for (int64_t r = 0; r < examples * v.rows; ++r)
    for (int64_t c = v.channels; c < ld; ++c) out[r * ld + c] = T(0);
}

// user = in, or user += sign * in.
template <class T>
static void value_out(const Value& v, int64_t examples, int64_t ld, const T* __restrict in, T* __restrict user) {
  for_elements(v, examples, ld, [&](int64_t to, int64_t from) { user[to] = in[from]; });
}
template <class T>
static void value_add(const Value& v, int64_t examples, int64_t ld, const T* __restrict in, T sign,
                      T* __restrict user) {
  for_elements(v, examples, ld, [&](int64_t to, int64_t from) { user[to] += sign * in[from]; });
}

}  // namespace METAFAST_ISA
}  // namespace metafast
