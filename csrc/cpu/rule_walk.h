// How a CPU thread walks over the elements of a task: a register of them at a time, or one of a pack of tasks.
#pragma once

#include <type_traits>

#include "cpu/kernels/pack.h"
#include "engine/rule_loops.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct CpuWalk {
  using Number = T;
  using Shared = Element<T>;
  using Scalar = std::conditional_t<kIsPack<T>, T, WholePack<Shared>>;
  static constexpr int64_t kStep = kIsPack<T> ? 1 : kLanes<Shared>;

  static Scalar get(const T* p) {
    if constexpr (kIsPack<T>)
      return *p;
    else
      return Scalar(load(p));
  }
  static void put(T* p, Scalar value) {
    if constexpr (kIsPack<T>)
      *p = value;
    else
      store(p, value.v);
  }
  static Scalar get_shared(const Shared* p) {
    if constexpr (kIsPack<T>)
      return Scalar(*p);
    else
      return Scalar(load(p));
  }

  template <class Body>
  void each_parameter(int32_t count, Body body) const {
    for (int32_t a = 0; a < count; ++a) body(a);
  }
  template <class Body>
  void each_element(int64_t size, Body body) const {
    for (int64_t i = 0; i < size; i += kStep) body(i);
  }
  static constexpr bool is_first() { return true; }
  static T one(Scalar value) {
    if constexpr (kIsPack<T>)
      return value;
    else
      return value.v[0];
  }

  // By the place in a register, whether a register is what the elements stand in or not: so the bits are the same.
  template <int kCount>
  struct Sums {
    static constexpr int kParts = kIsPack<T> ? kLanes<Shared> : 1;
    Scalar parts[kCount][kParts] = {};
    void add(int h, int64_t within, int64_t ld, Scalar value) {
      Scalar& part = parts[h][kIsPack<T> ? within % ld % kParts : 0];
      part = part + value;
    }
    T total(const CpuWalk&, int h) const {
      if constexpr (kIsPack<T>) {
        T sum = T(0);
        for (const Scalar& part : parts[h]) sum += part;
        return sum;
      } else {
        return sum_of<T>(parts[h][0].v);
      }
    }
  };
};

}  // namespace METAFAST_ISA
}  // namespace metafast
