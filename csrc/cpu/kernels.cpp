// Compiled once per instruction set and scalar type. Exports one table; everything else is inside.
#include "kernels.h"

#include "../engine.h"

#ifndef METAFAST_REAL
#define METAFAST_REAL float
#endif

namespace metafast {
namespace METAFAST_ISA {
namespace {

using Real = METAFAST_REAL;

void run_task(const Job<Real>& job, const Turn& turn) { TaskRun<Real>(job, turn).run(); }

void run_pack(const Job<Real>& job, const Turn& turn) { TaskRun<Pack<Real>>(job, turn).run(); }

void add_rows(const Real* rows, int64_t stride, int64_t count, int64_t begin, int64_t end, bool accumulate,
              Real* __restrict total) {
  if (!accumulate)
    for (int64_t i = begin; i < end; ++i) total[i] = Real(0);
  for (int64_t r = 0; r < count; ++r) {
    const Real* __restrict row = rows + r * stride;
    for (int64_t i = begin; i < end; ++i) total[i] += row[i];
  }
}

void add_groups(const Real* rows, int64_t stride, int64_t count, int64_t begin, int64_t end, bool accumulate,
                Real* total) {
  constexpr int L = kLanes<Real>, S = Block<Real>::kSize;
  for (int64_t r = 0; r < count; r += L) {
    const int64_t n = count - r < L ? count - r : L;
    for (int64_t i = begin; i < end; i += L) {
      const Real* row = rows + r * stride + i;
      Vector<Real> sum{};
      for (int64_t j = 0; j < S && j < n; ++j) {  // as in sum_rows
        Vector<Real> folded = load(row + j * stride);
        for (int64_t at = j + S; at < n; at += S) folded += load(row + at * stride);
        sum += folded;
      }
      store(total + i, (accumulate || r > 0 ? load(total + i) : Vector<Real>{}) + sum);
    }
  }
}

void adam(const AdamStep& step, const Real* __restrict g, int64_t n, Real* __restrict theta, Real* __restrict first,
          Real* __restrict second) {
  const Real beta1 = Real(step.beta1), beta2 = Real(step.beta2), new1 = Real(1 - step.beta1),
             new2 = Real(1 - step.beta2);
  const Real rate = Real(step.rate), epsilon = Real(step.epsilon);
  for (int64_t i = 0; i < n; ++i) {
    const Real m = beta1 * first[i] + new1 * g[i], v = beta2 * second[i] + new2 * g[i] * g[i];
    first[i] = m, second[i] = v;
    theta[i] -= rate * m / (sqrt(v) + epsilon);
  }
}

void elementary(int32_t function, const Real* x, Real* y, int64_t n) {
  switch (function) {
    case 0:
      for (int64_t i = 0; i < n; ++i) y[i] = exp(x[i]);
      break;
    case 1:
      for (int64_t i = 0; i < n; ++i) y[i] = expm1(x[i]);
      break;
    case 2:
      for (int64_t i = 0; i < n; ++i) y[i] = tanh(x[i]);
      break;
    case 3:
      for (int64_t i = 0; i < n; ++i) y[i] = sigmoid(x[i]);
      break;
    default:
      for (int64_t i = 0; i < n; ++i) y[i] = log1p01(x[i]);
      break;
  }
}

}  // namespace

template <>
const Kernels<Real>& table<Real>() {
  static const Kernels<Real> kernels = {
      kLanes<Real>,           run_task, run_pack,  add_rows, add_groups, parameter_in<Real, 1>,
      parameter_out<Real, 1>, adam,     elementary};
  return kernels;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
