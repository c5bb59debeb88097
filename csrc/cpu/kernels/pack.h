// Problem: where a network is small, a task does not fill the machine: 40 outputs are two and a half registers, one
//   output a sixteenth, and a product of ten rows is over before its accumulators are in place.
// Solution: as many tasks at a time as a register has lanes. A Pack is one number for each of them, and the engine and
//   pointwise functions, written for a generic scalar T, run with T = Pack, linear layers by products of packs: nothing is
//   padded or transposed, and every operation fills its register whatever the shapes are. The price is space: all arrays are
//   as many times larger (cpu/choices.h); and that tasks come in few runs, which is why there are packs of half a register, and
//   runs that one thread begins and another finishes (wrap_around.h). Losses other than squared error run as scalars, a
//   lane after the other (passes.h).
// Bits: what a task comes to is the same in a lane as by itself, and so is the sum over tasks (add_groups, kernels.cpp).
// Usage: a Pack of floats wherever float stands. Element<T> is float for both, kTasks<T> the number of lanes, or 1.
#pragma once

#include "core/scalar.h"
#include "cpu/kernels/gemm.h"

namespace metafast {
namespace METAFAST_ISA {

template <class E, int kCount>
struct Pack {
  typedef E Lanes __attribute__((vector_size(kCount * sizeof(E))));
  Lanes v;

  Pack() = default;
  MF_HD Pack(Lanes lanes) : v(lanes) {}
  MF_HD Pack(float x) : v(E(x) - Lanes{}) {}  // minus, not plus, keeps -0
  MF_HD Pack(double x) : v(E(x) - Lanes{}) {}
  MF_HD Pack(int x) : Pack(E(x)) {}
  MF_HD Pack(int64_t x) : Pack(E(x)) {}

  MF_HD Pack& operator+=(Pack b) { return v += b.v, *this; }
  MF_HD Pack& operator-=(Pack b) { return v -= b.v, *this; }

  friend MF_HD Pack operator-(Pack a) { return -a.v; }
  friend MF_HD Pack operator+(Pack a, Pack b) { return a.v + b.v; }
  friend MF_HD Pack operator-(Pack a, Pack b) { return a.v - b.v; }
  friend MF_HD Pack operator*(Pack a, Pack b) { return a.v * b.v; }
  friend MF_HD Pack operator/(Pack a, Pack b) { return a.v / b.v; }
};

template <class E, int kCount>
MF_HD Pack<E, kCount> sqrt(Pack<E, kCount> x) {
  for (int lane = 0; lane < kCount; ++lane) x.v[lane] = sqrt(x.v[lane]);
  return x;
}
// x > 0 ? a : b, lane by lane.
template <class E, int kCount>
MF_HD Pack<E, kCount> if_positive(Pack<E, kCount> x, Pack<E, kCount> a, Pack<E, kCount> b) {
  return x.v > Pack<E, kCount>(0).v ? a.v : b.v;
}

template <class T>
struct PackTraits {
  using Element = T;
  static constexpr int kTasks = 1;
};
template <class E, int kCount>
struct PackTraits<Pack<E, kCount>> {
  using Element = E;
  static constexpr int kTasks = kCount;
};
template <class T>
using Element = typename PackTraits<T>::Element;
template <class T>
constexpr int kTasks = PackTraits<T>::kTasks;

template <class T>
constexpr bool kIsPack = false;
template <class E, int kCount>
constexpr bool kIsPack<Pack<E, kCount>> = true;

// To gemm.h a pack is a register of one element.
template <class E, int kCount>
struct VectorOf<Pack<E, kCount>> {
  typedef Pack<E, kCount> type;
  typedef Pack<E, kCount> unaligned;
};
template <class E, int kCount>
constexpr int kLanes<Pack<E, kCount>> = 1;

// The two sizes of packs, which are one where registers are not halved: a pack of half as many tasks takes half as long where
// a processor does wide registers half by half, and as long where it does not.
template <class E>
using WholePack = Pack<E, kLanes<E>>;
template <class E>
using SmallPack = Pack<E, kLanes<E> / (METAFAST_VECTOR_BYTES == 64 ? 2 : 1)>;

// However tasks run, sums over them are made of sums over so many.
template <class E>
constexpr int kGroup = kTasks<SmallPack<E>>;

// The number of task `lane` in a pack.
template <class E, int kCount>
MF_HD E lane_of(Pack<E, kCount> x, int lane) {
  return x.v[lane];
}
template <class E>
MF_HD E lane_of(E x, int) {
  return x;
}
template <class E, int kCount>
MF_HD void set_lane(Pack<E, kCount>& x, int lane, E value) {
  x.v[lane] = value;
}
template <class E>
MF_HD void set_lane(E& x, int, E value) {
  x = value;
}

// The sum over a register whose elements belong to one task.
template <class T>
MF_HD T sum_of(Vector<T> v) {
  if constexpr (kIsPack<T>) {
    return v;
  } else {
    T total = T(0);
    for (int lane = 0; lane < kLanes<T>; ++lane) total += v[lane];
    return total;
  }
}

// x[begin] + .. + x[end - 1]
template <class T>
T sum_range(const T* x, int64_t begin, int64_t end) {
  Vector<T> total{};
  for (; begin + kLanes<T> <= end; begin += kLanes<T>) total += load(x + begin);
  T sum = sum_of<T>(total);
  for (; begin < end; ++begin) sum += x[begin];
  return sum;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
