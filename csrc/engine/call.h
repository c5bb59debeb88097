// One kind of call from Python, prepared once: everything but the addresses of the tensors, which each call brings anew.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/job.h"
#include "program/program.h"

namespace metafast {

using Address = std::uintptr_t;  // 0: absent

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Arrays of a workspace begin at multiples of 16 elements.
inline int64_t aligned(int64_t n) { return (n + 15) / 16 * 16; }

// [tasks, (steps,) examples, ...] tensors, contiguous.
struct SetTensors {
  int64_t examples;
  bool y_is_class;
  bool stepwise;                // another minibatch for each step
  Address x, y, w, dx, dy, dw;  // the gradients hold zeros on entry
};

// Whether the activations of every support pass are kept for the reverse sweep or computed again; or whole steps are, from
// checkpoints of the parameters.
enum class Memory : int { kAuto, kKeep, kRecompute, kCheckpoint };
// kAuto keeps them while they take no more than this for a task, or a pack of tasks.
constexpr int64_t kKeepBytes = int64_t(256) << 20;

struct Tensor {
  Address data;
  bool own;  // differs per task (or, for a rate, per step); otherwise shared
};

// Whether something that changes no result is done: where it pays, or, for tests, nowhere or wherever it is possible.
enum class Choice : int { kAuto, kNever, kAlways };

// Whether tasks run in packs, one in each lane of a SIMD register, or one by one: what is quickest, or, for tests, always one way.
// Mixed: in small packs, and one by one what is left.
enum class Packing : int { kAuto, kNever, kWhole, kSmall, kMixed };

// One hyper-parameter of the rule. `elementwise`: per adapted parameter, or empty; own: one for each step.
struct HyperTensors {
  Address table;  // [steps, adapted]
  std::vector<Tensor> elementwise;
  Address table_gradient;
  std::vector<Address> elementwise_gradient;
  bool is_wanted() const { return table_gradient || !elementwise_gradient.empty(); }
};

// Until the first call an address says only whether the tensor is there.
struct Call {
  Estimator estimator;
  bool sweep;
  Memory memory;
  int32_t checkpoint_every;  // steps; 0: the square root of their number
  Packing packing;
  Choice sharing;  // of a task's loops by threads (cpu/threads/work_stealing.h)
  int64_t tasks, steps;
  int threads;
  double loss_cotangent_all;  // of every task's loss, where loss_cotangent is absent
  std::optional<SetTensors> support, query;

  // In the order of the Program's description; vectors and gradients for learnt parameters only.
  std::vector<Tensor> parameters, vectors;
  std::vector<LinkPlan> links;
  std::vector<HyperTensors> hypers;  // of all links, one after the other
  Address loss_cotangent, logits_cotangent;
  std::vector<Address> adapted_cotangent;
  Address seed;  // of random nodes: one number of 64 bits, on the CPU

  Address support_loss, task_loss, loss, logits;
  std::vector<Address> adapted;
  std::vector<Tensor> gradients;  // own: [tasks, shape], not summed over tasks

  // The tensor of this name in kSlots (call.cpp); of several with one name, number i; of a hyper-parameter's values per
  // element, those of adapted parameter j. Throws where a call of this kind has none.
  Address& slot(const std::string& name, const Program& program, size_t i, size_t j);

  bool is_second_order() const { return estimator.is_second_order(); }
  bool is_hessian_vector() const { return estimator.is_hessian_vector(); }
  bool wants_hyper_gradient() const;
  // Of all links together (rules/rule.h).
  int32_t state_count() const;
  bool uses_start() const;
  bool scales() const;
  // Whether the rule is gradient descent and nothing else.
  bool is_descent() const { return links.size() == 1 && links[0].kind == LinkKind::kDescent; }
};

// A set as the kernels see it. Steps share its examples, or each has its own.
template <class T>
Examples<T> examples_of(const std::optional<SetTensors>& set, const Program& program, int64_t steps) {
  Examples<T> to{};
  if (!set) return to;
  const int64_t n = set->examples, x = n * program.input_size();
  const int64_t y = n * (set->y_is_class ? program.output_rows() : program.output_size()),
                sets = set->stepwise ? steps : 1;
  to.x = at<const T>(set->x), to.y = at<const void>(set->y), to.w = at<const T>(set->w);
  to.dx = at<T>(set->dx), to.dy = at<T>(set->dy), to.dw = at<T>(set->dw);
  to.y_is_class = set->y_is_class;
  to.x_task_stride = x * sets, to.y_task_stride = y * sets, to.w_task_stride = n * sets;
  if (set->stepwise) to.x_step_stride = x, to.y_step_stride = y, to.w_step_stride = n;
  return to;
}

// Throws std::invalid_argument if the parts of a call do not fit together.
void check(const Call& call, const Program& program);

class Session {
 public:
  virtual ~Session() = default;

  Call call;                                           // to be filled with addresses before each run
  virtual int64_t bytes() const = 0;                   // of workspace
  virtual int64_t tasks_at_once() const { return 1; }  // one in each lane of a SIMD register
  virtual int64_t migrated() const { return 0; }       // runs that one thread begins and another finishes
  // By one thread at a time, which calls overlapped() once, as soon as others, if there are any, are at work.
  virtual void run(Address workspace, void* stream, const std::function<void()>& overlapped) = 0;
  virtual int64_t constants_bytes() const { return 0; }            // of memory that lives as long as the session,
  virtual void upload(Address /*constants*/, void* /*stream*/) {}  // to be filled before the first run

 protected:
  explicit Session(Call c) : call(std::move(c)) {}
};

}  // namespace metafast
