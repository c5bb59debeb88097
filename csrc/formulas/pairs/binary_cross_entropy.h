// The binary cross-entropy of a probability a and a target b, as the loss of that name has it.
#pragma once

#include "formulas/losses/bce.h"

namespace metafast {
namespace METAFAST_ISA {

struct BinaryCrossEntropy {
  template <class T>
  static MF_HD T value(T a, T b) {
    return of<T>().value(a, b);
  }
  // (a - b) / (a (1 - a)), in which the target moves as well.
  template <class T>
  static MF_HD T left(T a, T b) {
    return of<T>().slope(a, b);
  }
  template <class T>
  static MF_HD Dual<T> left(Dual<T> a, Dual<T> b) {
    const Dual<T> at = of<T>().slope(a, b.v);
    return {at.v, at.d - b.d / of<T>().variance(a.v)};
  }
  template <class T>
  static MF_HD T right(T a, T b) {
    return of<T>().target_slope(a, b);
  }
  template <class T>
  static MF_HD Dual<T> right(Dual<T> a, Dual<T> b) {
    return of<T>().target_slope(a, b.v);
  }

 private:
  template <class T>
  static MF_HD BernoulliLoss<T> of() {
    return BernoulliLoss<T>(LossPlan{});
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
