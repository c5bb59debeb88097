// What one translation unit of kernels offers: the same functions for every instruction set and scalar type.
#pragma once

#include "core/isa.h"
#include "engine/job.h"

namespace metafast {

// One step of an optimiser of the outer loop, as torch.optim takes it, on the gradient d = sign g + decay theta.
//
//   Adam (Kingma and Ba 2015, algorithm 1): m <- m + (1 - beta1) (d - m), v <- beta2 v + (1 - beta2) d^2, u = v or the largest
//   v so far; theta <- keep theta - rate m / (sqrt(u) / root + epsilon). The corrections of bias stand in rate and root, and
//   the weight decay of AdamW (Loshchilov and Hutter 2019) in keep.
struct AdamStep {
  double sign, decay, keep, beta1, beta2, rate, root, epsilon;
};
//   SGD: b <- momentum b + fresh d; theta <- theta - rate (b, or d + momentum b if nesterov, or d where nothing is kept).
struct SgdStep {
  double sign, decay, rate, momentum, fresh;
  bool nesterov;
};

template <class T>
struct Kernels {
  int32_t lanes;              // elements of a SIMD register: leading dimensions are multiples of it
  int32_t group;              // tasks of a small pack, and those that sums over tasks are made of
  bool (*small_packs_pay)();  // whether a small pack takes about half as long as a whole one
  void (*run_task)(const Job<T>&, const WorkItem&);
  void (*run_pack)(const Job<T>&, const WorkItem&);   // of `lanes` tasks
  void (*run_group)(const Job<T>&, const WorkItem&);  // of `group` tasks
  // total[begin .. end) (+)= sum over `count` rows, in order; or of the sums over groups of them, in order. The ends are
  // multiples of 16.
  void (*add_rows)(const T* rows, int64_t stride, int64_t count, int64_t begin, int64_t end, bool accumulate, T* total);
  void (*add_groups)(const T* rows, int64_t stride, int64_t count, int64_t begin, int64_t end, bool accumulate,
                     T* total);
  void (*parameter_in)(const ParameterPlan&, const T* user, T* out);
  void (*parameter_out)(const ParameterPlan&, const T* in, T* user);
  void (*adam)(const AdamStep&, const T* gradient, int64_t n, T* theta, T* first, T* second, T* largest);  // or null
  void (*sgd)(const SgdStep&, const T* gradient, int64_t n, T* theta, T* velocity);                        // or null
  // exp, expm1, tanh, sigmoid, log1p01 of an array, so that their stated errors can be tested.
  void (*elementary)(int32_t function, const T* x, T* y, int64_t n);
};

namespace METAFAST_ISA {
template <class T>
const Kernels<T>& table();
template <>
const Kernels<float>& table<float>();
template <>
const Kernels<double>& table<double>();
}  // namespace METAFAST_ISA

}  // namespace metafast
