// Softmax of the elements of a row, or its logarithm (docs/maths.md, section 5). S is a real or a dual number.
#pragma once

#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

template <bool kLog>
struct SoftmaxRow {
  // What to subtract from the elements of a row before the exponential: the greatest. Where that is -inf, a softmax that
  // may be of nothing comes out as zeros, else as NaN.
  template <class T>
  MF_HD static T origin(T greatest, bool of_nothing) {
    return of_nothing && greatest == -Bits<T>::kInfinity ? T(0) : greatest;
  }
  // Of an element less that, and the sum of the exponentials of such, which is zero of nothing alone.
  template <class T>
  MF_HD static T value(T shifted, T sum) {
    return kLog ? shifted - log(sum) : exp(shifted) / (sum == T(0) ? T(1) : sum);
  }
  template <class S>
  MF_HD static S probability(S y) {
    if constexpr (kLog)
      return exp(y);
    else
      return y;
  }
  // The tangent of an output by that of its input, `sum` being that of probability times tangent over the row.
  template <class T>
  MF_HD static T tangent(T p, T x_dot, T sum) {
    return kLog ? x_dot - sum : p * (x_dot - sum);
  }
  // The cotangent of an input, `sum` being that of pulled() over the row.
  template <class S>
  MF_HD static S pulled(S p, S dy) {
    return kLog ? dy : p * dy;
  }
  template <class S>
  MF_HD static S input_gradient(S p, S dy, S sum) {
    return kLog ? dy - p * sum : p * (dy - sum);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
