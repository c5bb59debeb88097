// The loss of a batch: value, cotangents and their tangents (formulas/losses/list.h). One block per task; a
// class that does not exist makes the task NaN.
#pragma once

#include "cuda/loss_flags.h"
#include "cuda/task.cuh"
#include "formulas/losses/list.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct LossPass {
  const Task<T>& task;
  const Instruction& instruction;
  const Frame<T> f;
  const Examples<T>& data;
  const Value& z;
  const int64_t n;

  __device__ LossPass(const Task<T>& t, const Instruction& i)
      : task(t), instruction(i), f(t.frame(i)), data(t.set(i.which)), z(f.value(f.plan->output)), n(f.examples()) {}

  __device__ Outputs<T> outputs(int64_t i) const {
    const T* dot = f.activation_dot(f.plan->output);
    const int64_t at = i * z.rows * z.ld;
    return {f.activation(f.plan->output) + at,
            dot ? dot + at : nullptr,
            f.tape + f.plan->loss.kept + i * z.rows * z.ld_cotangent,
            z.channels,
            z.ld,
            z.ld_cotangent,
            z.rows,
            z.rows * z.channels};
  }
  // Real targets of images stand transposed in the workspace, others are read where the user has them.
  __device__ Target<T> target(int64_t i) const {
    const int64_t at = task.task * data.y_task_stride + instruction.k * data.y_step_stride;
    if (data.y_is_class)
      return {static_cast<const int64_t*>(data.y) + at + i * z.rows, nullptr, z.channels, z.ld_cotangent};
    if (z.height > 0)
      return {nullptr, task.at(task.job.layout.targets) + i * z.rows * z.ld_cotangent, z.channels, z.ld_cotangent};
    return {nullptr, static_cast<const T*>(data.y) + at + i * z.rows * z.channels, z.channels, z.channels};
  }
  __device__ T weight(int64_t i) const {
    return data.w ? data.w[task.task * data.w_task_stride + instruction.k * data.w_step_stride + i] : T(1);
  }
  __device__ static T not_a_number() { return T(0) / (T(1) - T(1)); }

  // The value of an example; S = Dual: with its tangent.
  template <class S, class L>
  __device__ S value(const L& loss, int64_t i) const {
    const Outputs<T> zi = outputs(i);
    const Target<T> y = target(i);
    return loss.fits(zi, y) ? loss.template value<S>(zi, y) : S(not_a_number());
  }

  // What the weighted sum of losses is divided by.
  template <class L>
  __device__ T divisor(const L& loss) const {
    if (f.plan->loss.reduction == Reduction::kSum) return T(1);
    const bool weighted = f.plan->loss.reduction == Reduction::kWeightedMean && data.w;
    if (!L::kHasMass && !weighted) return T(n);
    T total = T(0);
    METAFAST_ROLLED for (int64_t i = 0; i < n; ++i) total += weighted ? weight(i) * mass(loss, i) : mass(loss, i);
    return total;
  }
  template <class L>
  __device__ T mass(const L& loss, int64_t i) const {
    if constexpr (L::kHasMass) {
      const Outputs<T> zi = outputs(i);
      const Target<T> yi = target(i);
      return loss.fits(zi, yi) ? loss.mass(zi, yi) : not_a_number();
    } else {
      return T(1);
    }
  }

  // Value of each example, then L and its divisor.
  template <class L>
  __device__ void forward(const L& loss, const Block& block) const {
    T *each = f.tape + f.plan->loss.saved, *found = task.loss(instruction);
    METAFAST_ROLLED for (int64_t i = block.thread; i < n; i += block.threads) each[i] = value<T>(loss, i);
    block.sync();
    if (block.thread == 0) {
      T sum = T(0);
      METAFAST_ROLLED for (int64_t i = 0; i < n; ++i) sum += weight(i) * each[i];
      found[1] = divisor(loss);
      found[0] = sum / found[1];
      if (instruction.argument & kLossReported) {
        if (instruction.which == Which::kQuery)
          task.job.task_loss[task.task] = found[0];
        else if (task.job.support_loss)
          task.job.support_loss[task.task * task.job.steps + instruction.k] = found[0];
      }
    }
    block.sync();
  }

  // Writes the cotangent of the outputs, pads zero. With S dual, its tangent.
  template <class S, class L>
  __device__ void reverse(const L& loss, const Block& block, T* dz) const {
    const T* found = task.loss(instruction);
    const T unit = (instruction.argument & kLossSeeded ? task.loss_cotangent() : T(1)) / found[1];
    const bool with_data = instruction.argument & kLossData;
    T* dy = with_data && data.dy ? task.at(task.job.layout.target_gradient) : nullptr;
    T* dw = with_data && data.dw ? task.at(task.job.layout.weight_gradient) : nullptr;
    // dL/dw_i = (l_i - level m_i) / divisor: a divisor that is the sum of weights depends on w_i as well.
    const S level = f.plan->loss.reduction == Reduction::kWeightedMean ? value_of(S(T(0)), found) : S(T(0));
    METAFAST_ROLLED for (int64_t i = block.thread; i < n; i += block.threads) {
      const Outputs<T> zi = outputs(i);
      const Target<T> yi = target(i);
      const T scale = unit * weight(i);
      T *dzi = dz + i * z.rows * z.ld_cotangent, *dyi = dy ? dy + i * z.rows * z.ld_cotangent : nullptr;
      const bool good = loss.fits(zi, yi);
      METAFAST_ROLLED for (int64_t e = 0; e < z.rows * z.ld_cotangent; ++e) dzi[e] =
          good || uint32_t(e) % uint32_t(z.ld_cotangent) >= uint32_t(z.channels) ? T(0) : not_a_number();
      if (good) {
        loss.template gradient<S>(zi, yi, [&](int64_t c, S g) { dzi[place(c)] = scale * part(g); });
        if (dyi) loss.template target_gradient<S>(zi, yi, [&](int64_t c, S g) { dyi[place(c)] = scale * part(g); });
      }
      if (dw) dw[i] = unit * part(value<S>(loss, i) - level * S(mass(loss, i)));
    }
  }

  // d L / d eps along the tangent of the outputs; needed only where the gradient of the weights is.
  template <class L>
  __device__ void tangent_value(const L& loss, const Block& block) const {
    if (!(instruction.argument & kLossData) || !data.dw) return;
    T *each = task.at(task.job.layout.weight_gradient), *found = task.loss(instruction);
    METAFAST_ROLLED for (int64_t i = block.thread; i < n; i += block.threads) each[i] = value<Dual<T>>(loss, i).d;
    block.sync();
    if (block.thread == 0) {
      T sum = T(0);
      METAFAST_ROLLED for (int64_t i = 0; i < n; ++i) sum += weight(i) * each[i];
      found[2] = sum / found[1];
    }
    block.sync();
  }

 private:
  __device__ int64_t place(int64_t c) const {
    const uint32_t at = uint32_t(c), channels = uint32_t(z.channels);
    return int64_t(at / channels) * z.ld_cotangent + at % channels;
  }
  __device__ static T part(T a) { return a; }
  __device__ static T part(Dual<T> a) { return a.d; }
  __device__ static T value_of(T, const T* found) { return found[0]; }
  __device__ static Dual<T> value_of(Dual<T>, const T* found) { return {found[0], found[2]}; }
};

// Out of line: losses are no hot code, and there are many of them.
template <class T, class L>
METAFAST_OUT_OF_LINE __device__ void run_loss(const Task<T>& task, const Instruction& i, const Block& block) {
  const LossPass<T> pass(task, i);
  const L loss(pass.f.plan->loss);
  pass.forward(loss, block);
  if (i.argument & kLossBackward) pass.template reverse<T>(loss, block, pass.f.cotangent(pass.f.plan->output));
}

template <class T, class L>
METAFAST_OUT_OF_LINE __device__ void run_loss_tangent(const Task<T>& task, const Instruction& i, const Block& block) {
  const LossPass<T> pass(task, i);
  const L loss(pass.f.plan->loss);
  pass.tangent_value(loss, block);
  pass.template reverse<Dual<T>>(loss, block, pass.f.cotangent_dot(pass.f.plan->output));
}

template <class T>
struct Loss : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    switch (task.plan(i.which)->loss.kind) {
#define METAFAST_CASE(NAME, ...) \
  case LossKind::k##NAME: return run_loss<T, NAME<T>>(task, i, block);
      METAFAST_LOSSES(METAFAST_CASE)
#undef METAFAST_CASE
      case LossKind::kNone: break;
    }
  }
};

template <class T>
struct LossTangent : PhaseDefaults {
  static __device__ void run(const Task<T>& task, const Instruction& i, const Block& block) {
    switch (task.plan(i.which)->loss.kind) {
#define METAFAST_CASE(NAME, ...) \
  case LossKind::k##NAME: return run_loss_tangent<T, NAME<T>>(task, i, block);
      METAFAST_LOSSES(METAFAST_CASE)
#undef METAFAST_CASE
      case LossKind::kNone: break;
    }
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
