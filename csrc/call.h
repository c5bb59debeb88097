// One call from Python: pointers into the user's tensors, and the workspace that holds everything else.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "program.h"

namespace metafast {

using Address = std::uintptr_t;  // 0: absent

// [tasks, (steps,) examples, ...] tensors, contiguous.
struct SetAddresses {
  Address x, y, w, dx, dy, dw;  // the gradients hold zeros on entry
  int64_t examples;
  bool y_is_class;
  bool stepwise;  // another minibatch for each step
};

// Whether the activations of every support pass are kept for the reverse sweep, or computed again.
enum class Memory : int { kAuto, kKeep, kRecompute };

struct Call {
  bool first_order, sweep, hessian_vector;
  Memory memory;
  int64_t tasks, steps;
  int threads;
  std::optional<SetAddresses> support, query;

  // In the order of the Program's description; stride 0 if shared by all tasks.
  std::vector<std::pair<Address, int64_t>> parameters;
  std::vector<std::pair<Address, int64_t>> vectors;  // learnt parameters only

  Address rate_table;
  std::vector<std::pair<Address, int64_t>> elementwise;  // per adapted parameter; stride of a step
  Address rate_table_gradient;                           // [steps, adapted]
  std::vector<Address> elementwise_gradient;

  double loss_cotangent_all;
  Address loss_cotangent, logits_cotangent;
  std::vector<Address> adapted_cotangent;

  Address support_loss, task_loss, loss, logits;
  std::vector<Address> adapted;
  std::vector<std::pair<Address, bool>> gradients;  // per learnt parameter; true: [tasks, shape], not summed over tasks
};

// Runs the call if `bytes` suffice and returns 0; otherwise returns the bytes it needs and touches nothing.
template <class T>
int64_t run(const Program& program, const Call& call, Address workspace, int64_t bytes);

}  // namespace metafast
