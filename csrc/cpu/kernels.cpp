// Compiled once per instruction set and scalar type. Exports one table; everything else is inside.
#include "cpu/kernels.h"

#include <algorithm>
#include <chrono>

#include "cpu/machine.h"

#ifndef METAFAST_REAL
#define METAFAST_REAL float
#endif

namespace metafast {
namespace METAFAST_ISA {
namespace {

using Real = METAFAST_REAL;

void run_task(const Job<Real>& job, const WorkItem& item) { Machine<Real>(job, item).run(item.begin, item.end); }

void run_pack(const Job<Real>& job, const WorkItem& item) {
  Machine<WholePack<Real>>(job, item).run(item.begin, item.end);
}

void run_group(const Job<Real>& job, const WorkItem& item) {
  Machine<SmallPack<Real>>(job, item).run(item.begin, item.end);
}

// As wide as T and independent, so that nothing but the multipliers limits them.
template <class T>
double time_of_products() {
  using Clock = std::chrono::steady_clock;
  constexpr int kSums = 10, kRounds = 200;
  const Clock::time_point start = Clock::now();
  double quickest = 1;
  for (Clock::time_point now = start; now - start < std::chrono::microseconds(500);) {
    T sums[kSums] = {};
    for (int round = 0; round < kRounds; ++round)
#pragma GCC unroll 16
      for (T& sum : sums) {
        sum.v = sum.v * sum.v + sum.v;
        asm volatile("" : "+v"(sum.v));
      }
    const Clock::time_point end = Clock::now();
    quickest = std::min(quickest, std::chrono::duration<double>(end - now).count());
    now = end;
  }
  return quickest;
}

// Measured, because no flag of the processor tells. It takes a while until wide registers run at their full speed.
bool small_packs_pay() {
  if constexpr (kGroup<float> < kLanes<float>) {
    static const bool pay = time_of_products<SmallPack<float>>() < 0.75 * time_of_products<WholePack<float>>();
    return pay;
  }
  return false;
}

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
  constexpr int64_t L = kLanes<Real>, G = kGroup<Real>;
  for (int64_t r = 0; r < count; r += G) {
    const int64_t n = count - r < G ? count - r : G;
    for (int64_t i = begin; i < end; i += L) {
      const Real* row = rows + r * stride + i;
      Vector<Real> sum{};
      for (int64_t j = 0; j < n; ++j) sum += load(row + j * stride);
      store(total + i, (accumulate || r > 0 ? load(total + i) : Vector<Real>{}) + sum);
    }
  }
}

template <bool kLargest>
void adam_with(const AdamStep& step, const Real* __restrict g, int64_t n, Real* __restrict theta,
               Real* __restrict first, Real* __restrict second, Real* __restrict largest) {
  const Real sign = Real(step.sign), decay = Real(step.decay), keep = Real(step.keep), beta2 = Real(step.beta2);
  const Real new1 = Real(1 - step.beta1), new2 = Real(1 - step.beta2), old1 = Real(1) - new1;
  const Real rate = Real(step.rate), root = Real(step.root), epsilon = Real(step.epsilon);
  const bool decays = step.decay != 0, mostly_new = new1 >= Real(0.5);
  for (int64_t i = 0; i < n; ++i) {
    const Real d = decays ? sign * g[i] + decay * theta[i] : sign * g[i];
    const Real change = d - first[i];
    const Real m = mostly_new ? d - change * old1 : first[i] + new1 * change;
    const Real v = beta2 * second[i] + new2 * d * d;
    first[i] = m, second[i] = v;
    Real u = v;
    if constexpr (kLargest) largest[i] = u = largest[i] >= v || largest[i] != largest[i] ? largest[i] : v;  // NaN stays
    theta[i] = keep * theta[i] - rate * m / (sqrt(u) / root + epsilon);
  }
}

void adam(const AdamStep& step, const Real* g, int64_t n, Real* theta, Real* first, Real* second, Real* largest) {
  (largest ? adam_with<true> : adam_with<false>)(step, g, n, theta, first, second, largest);
}

template <bool kKeeps>
void sgd_with(const SgdStep& step, const Real* __restrict g, int64_t n, Real* __restrict theta,
              Real* __restrict velocity) {
  const Real sign = Real(step.sign), decay = Real(step.decay), rate = Real(step.rate);
  const Real momentum = Real(step.momentum), fresh = Real(step.fresh);
  const bool decays = step.decay != 0, nesterov = step.nesterov;
  for (int64_t i = 0; i < n; ++i) {
    Real d = decays ? sign * g[i] + decay * theta[i] : sign * g[i];
    if constexpr (kKeeps) {
      const Real b = velocity[i] = momentum * velocity[i] + fresh * d;
      d = nesterov ? d + momentum * b : b;
    }
    theta[i] -= rate * d;
  }
}

void sgd(const SgdStep& step, const Real* g, int64_t n, Real* theta, Real* velocity) {
  (velocity ? sgd_with<true> : sgd_with<false>)(step, g, n, theta, velocity);
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
    case 4:
      for (int64_t i = 0; i < n; ++i) y[i] = log1p01(x[i]);
      break;
    case 5:
      for (int64_t i = 0; i < n; ++i) y[i] = log(x[i]);
      break;
    case 6:
      for (int64_t i = 0; i < n; ++i) y[i] = log1p(x[i]);
      break;
    case 7:
      for (int64_t i = 0; i < n; ++i) y[i] = sin(x[i]);
      break;
    case 8:
      for (int64_t i = 0; i < n; ++i) y[i] = cos(x[i]);
      break;
    default:
      for (int64_t i = 0; i < n; ++i) y[i] = erf(x[i]);
      break;
  }
}

}  // namespace

template <>
const Kernels<Real>& table<Real>() {
  static const Kernels<Real> kernels = {
      kLanes<Real>, kGroup<Real>,          small_packs_pay,        run_task, run_pack, run_group, add_rows,
      add_groups,   parameter_in<Real, 1>, parameter_out<Real, 1>, adam,     sgd,      elementary};
  return kernels;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
