// Squared error: (z - y)^2.
#pragma once

#include "formulas/losses/elementwise.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct Square {
  METAFAST_HD explicit Square(const LossPlan&) {}
  METAFAST_HD T value(T z, T y) const { return (z - y) * (z - y); }
  template <class S>
  METAFAST_HD S slope(S z, T y) const {
    return S(T(2)) * (z - S(y));
  }
  template <class S>
  METAFAST_HD S target_slope(S z, T y) const {
    return -slope(z, y);
  }
};

template <class T>
using Mse = Elementwise<T, Square<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
