// One call as the kernels see it: plain data, no owner of anything.
#pragma once

#include "core/plan.h"
#include "estimators/list.h"
#include "rules/list.h"

namespace metafast {

// One set of examples as the user has it. Strides count elements; step_stride is 0 if every inner step sees the same.
template <class T>
struct Examples {
  const T* x;
  const void* y;  // int64 classes, or T
  const T* w;
  bool y_is_class;
  int64_t x_task_stride, x_step_stride, y_task_stride, y_step_stride, w_task_stride, w_step_stride;
  // Gradients in the user's layout, or null.
  T *dx, *dy, *dw;
};

template <class T>
struct ParameterSource {
  const T* data;
  int64_t task_stride;  // 0: shared by all tasks
};

// The first layer kept as its products with the data instead of its weight (cpu/first_layer.h). Offsets are into a task's
// place in the workspace.
struct FirstLayerPlan {
  int32_t parameter;  // in storage order; -1: the layer is treated like any other
  int32_t output;     // the value it writes
  int32_t inputs, ld, steps;
  int32_t changes;  // X (W_k - W_0) that are kept: of all steps, or one where tapes hold what is made of them
  int64_t support_rows, query_rows;
  int64_t gram, cross;                                                                                  // X X', X_q X'
  int64_t start, change, coordinates, query_start, query_change, mu_start, mu_change, coordinate_bars;  // see there
  int64_t states, direction, numbers, checkpoints;  // of a rule with states; v; c, e, p, q; S and E
};

// Where what one task needs is kept: offsets in its place in the workspace.
struct ThreadLayout {
  int64_t initial;  // all parameters at step 0, if some differ per task
  // Adapted parameters, then the rule's states if they are kept, after each step that is kept; states that are not; and the
  // bars of the states.
  int64_t trajectory, trajectory_stride, state, state_bar;
  int64_t start_bar;  // the bar of theta_0 that links leave
  int64_t link;       // of a rule with several links: what each of them found
  int64_t gradient;   // of the support loss; one for each step of a segment if the rule's adjoint reads it
  int64_t gradient_stride;
  int64_t gradient_dot;   // its tangent
  int64_t vector;         // the tangent of the parameters
  int64_t meta_gradient;  // lambda, where no sum over tasks is wanted
  int64_t targets, target_gradient, weight_gradient;
  int64_t support_packs, query_packs;  // their data, where tasks run in packs
  int64_t tapes, tape_stride;          // of the support passes: one for each step of a segment if kept
  int64_t tangent_tape, query_tape;
  int64_t transient,
      transient_stride;  // what tapes leave out: a place for each step only if a gradient of rates reads it
  int64_t total;
};

// One link of the rule (rules/list.h), and where its hyper-parameters and states stand among those of all links.
struct LinkPlan {
  LinkKind kind;
  int32_t flags, hyper, state;
};

// A hyper-parameter. Of step k for adapted parameter a it is table[k * adapted_count + a], or, where each[a] is not null, the
// array at each[a] + k * each_stride[a]. Its gradient stands behind the parameters' in a task's block, the table at
// table_offset and the arrays at each_offset, if it is wanted.
template <class T>
struct HyperPlan {
  const T* table;
  const T* const* each;
  const int64_t* each_stride;
  bool wanted, elementwise;
  int64_t table_offset;
  const int64_t* each_offset;
};

// What is kept of the steps of a task. Checkpoints of theta stand after every `every` steps, if that is not 0; what lies
// between them is recomputed, a segment at a time (docs/maths.md, equation 13). `thetas`, `tapes`, `gradients`: how many of
// each are kept, besides.
struct KeptSteps {
  int32_t every, thetas, tapes, gradients;
  bool states;  // with each theta; else those of the last step alone

  // Where theta_{k+1} stands among all that are kept: those between checkpoints first.
  MF_HD int64_t theta_slot(int32_t k) const {
    if (!every) return k % thetas;
    return (k + 1) % every == 0 ? thetas + (k + 1) / every - 1 : k % every;
  }
  MF_HD int64_t theta_count(int32_t steps) const { return steps == 0 ? 0 : thetas + (every ? steps / every : 0); }
  MF_HD int64_t tape_slot(int32_t k) const { return tapes > 1 ? k % tapes : 0; }
  MF_HD int64_t gradient_slot(int32_t k) const { return gradients > 1 ? k % gradients : 0; }

  // Whether step k, which is not the last of all, ends a segment that a reverse sweep recomputes; where that begins.
  MF_HD bool ends_segment(int32_t k, int32_t steps) const { return every && (k + 1) % every == 0 && k + 1 < steps; }
  MF_HD int32_t segment_begin(int32_t k) const { return k + 1 - every; }
  // Whether the tape of step k is still there when a sweep that comes from behind has reached it.
  MF_HD bool has_tape(int32_t k, int32_t steps) const {
    return tapes > 1 || k + 1 == steps || (every && (k + 1) % every == 0);
  }
};

// One task, or pack of tasks, and where it runs: the first row for what is summed over tasks, the place for the rest, the
// thread; and which of its stages: inner steps, query, reverse steps.
struct WorkItem {
  int64_t run, row, place, thread;
  int32_t begin, end;
};

// How a task's loop is offered to idle threads (cpu/threads/work_stealing.h).
using Part = void (*)(const void* context, int64_t part, int64_t thread);
struct Helpers {
  void* owner;                           // null: nobody will ever help
  int64_t worth;                         // multiply-adds that are worth handing over
  int64_t (*likely)(const void* owner);  // how many threads would come
  // Calls part(context, i, thread that does it) for i = 0 .. parts - 1 and returns when all are done.
  void (*share)(void* owner, int64_t thread, int64_t parts, Part part, const void* context);
};

// A call as both machines, and the order of work on a device, know it. Parameters in storage order: adapted, meta, constant.
struct CallShape {
  int32_t steps;
  Estimator estimator;
  bool sweep;  // compute the meta-gradient
  KeptSteps kept;
  int32_t parameter_count, learnt_count, adapted_count, link_count, hyper_count, state_count;
  int64_t parameter_size, learnt_size, adapted_size;
  int64_t hyper_size;  // of the wanted hyper-parameters' gradients
  bool want_hyper_gradient;
  bool own_initial;  // some parameter differs per task
  bool descent;      // the rule is gradient descent and nothing else
  bool uses_start;   // some link reads theta_0
};

// Its tensors, in the user's layout but for `gradients`; null if absent or unwanted.
template <class T>
struct CallTensors : CallShape {
  int64_t tasks;
  uint64_t seed;  // of random nodes
  bool has_query;
  const ParameterPlan* parameters;
  const ParameterSource<T>* sources;
  const ParameterSource<T>* vectors;  // v, one per learnt parameter
  const LinkPlan* links;
  const HyperPlan<T>* hypers;

  const T* loss_cotangent;  // [tasks] or, where null, the same for all:
  T loss_cotangent_all;
  const T* logits_cotangent;          // [tasks, examples, output]
  const T* const* adapted_cotangent;  // per adapted parameter [tasks, shape]

  T *support_loss, *task_loss, *logits;
  T* const* adapted;       // per adapted parameter [tasks, shape]
  T* const* own_gradient;  // per learnt parameter [tasks, shape]; null: it is to be summed over tasks
  T* gradients;  // what is summed, of so many tasks as there is room for: lambda, then the bars of hyper-parameters
  int64_t gradient_stride;
};

// One call on the CPU. Where tasks run in packs (cpu/kernels/pack.h), places and scratch hold packs, and offsets into them
// count those; what is shared or summed, of each task or group of a pack, stays as it is.
template <class T>
struct Job : CallTensors<T> {
  const BatchPlan *support_plan, *query_plan;
  Examples<T> support, query;
  const T* shared_initial;  // parameters that do not differ per task, laid out
  ThreadLayout layout;
  FirstLayerPlan first;
  Helpers helpers;
  T *scratch, *places;     // thread 0's scratch; the first place
  int64_t scratch_stride;  // from thread to thread
};

}  // namespace metafast
