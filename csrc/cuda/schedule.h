// The order of work: the instructions of one kind of call, in the order that the call's estimator (estimators/list.h) asks for.
#pragma once

#include <vector>

#include "cuda/emitter.h"

namespace metafast {

// What the order depends on.
struct DeviceShape : CallShape {
  const BatchPlan* plans[2];  // by Which; null if there is no such set
  const ParameterPlan* parameters;
  int64_t hyper_values;
  bool persistent;
  Tf32 tf32;
  bool shared_initial;     // parameters at step 0 are laid out once for all tasks
  bool scales;             // some link multiplies by a number that depends on all of a gradient
  bool image_targets[2];   // real targets that must be transposed
  bool data_gradients[2];  // of x, y or w
  bool query_has_targets, logits, logits_cotangent, adapted_cotangent, adapted;
  bool own_gradients;  // some gradient is not summed over tasks
  bool sums;           // some is
  int64_t chunk_tasks;
  bool loss;  // the mean over tasks is wanted
};

struct Schedule {
  std::vector<Instruction> list;
  // Once per call [0, tasks_begin); for every task of a chunk [.., chunk_begin); once per chunk [.., finish_begin); once.
  int32_t tasks_begin, chunk_begin, finish_begin;
  int64_t scratch;
};

Schedule make_schedule(const DeviceShape& shape);

// Whether every node of the plan has device code.
bool device_supports(const BatchPlan& plan);

}  // namespace metafast
