// What the device code of a primitive sees, and what it must keep to. (csrc/cpu/frame.h is the same for the CPU.)
//
// A pass of a node (forward, backward, tangent forward, tangent backward) is one or more *phases*. A phase is a struct
//
//   template <class T>
//   struct LinearForward : PhaseDefaults {
//     static __device__ void run(const Frame<T>& f, const Node& node, const Block& b);
//   };
//
// executed by a block of threads for one task and one tile of its work (b.tile of b.tiles), in both execution styles:
// as a kernel of its own with a grid of (tiles, tasks), or as one case of the persistent kernel, which does all tiles one
// after another. Its name stands in phases.h; the struct in primitives/<name>.cuh, which phases.cuh includes. Where and
// with how many tiles it runs is decided on the host by primitives/<name>.h, which schedule.cpp includes:
//
//   struct LinearSchedule { static void forward(Emitter& e, const Node& node); backward; tangent_forward; tangent_backward };
//
// Rules
//   * The result must not depend on the order of threads, tiles or tasks: no floating-point atomics; sums in a fixed
//     order. It may depend on b.tiles and b.threads, which are the same in both styles.
//   * Tiles of a phase are independent: none reads what another writes, and no element has two writers. What must wait
//     is another phase; partial results stand in f.scratch (Emitter::need_scratch), which belongs to one pass of one node.
//   * Any number of threads that is a multiple of 32, at most kThreads, must give a right result. Every thread of the
//     block calls b.sync() equally often. No `__shared__` variables: b.shared<T>() are kShared elements of T, undefined at
//     entry, shared by the block; a phase that uses them begins and ends with no assumption on them (the engine puts a
//     barrier between phases and between tiles).
//   * Layout as in core/plan.h: pads of parameters, gradients, cotangents and their tangents are written as zero; pads of
//     activations and their tangents are finite. Leading dimensions are multiples of kDeviceLanes (4), and arrays
//     begin at multiples of 16 bytes, but for inputs read where the user has them (ld = channels, any alignment).
//   * f.activation_dot(v) and f.parameter_dot(p) are null where the tangent is known to be zero. GradientMode says
//     whether a gradient is wanted, overwritten or accumulated, as on the CPU.
//   * Formulae are those of csrc/formulas/ and csrc/core/scalar.h, shared, not copied. No CUDA header is included; from
//     CUDA, code uses __device__, __syncwarp and __shfl_xor_sync (through shim.h on the CPU) and nothing else.
#pragma once

#include "core/philox.h"
#include "core/scalar.h"
#include "cuda/job.h"
#include "cuda/launch.h"
#include "formulas/functions/list.h"

namespace metafast {
namespace METAFAST_ISA {

// The threads of a block, and the part of a phase they are to do.
struct Block {
  int32_t thread, threads, tile, tiles;
  int32_t argument;  // of the Instruction
  void* memory;

  template <class T>
  MF_HD T* shared() const {
    return static_cast<T*>(memory);
  }
  __device__ void sync() const { __syncthreads(); }

  // Calls body(i) for this thread's share of this tile of [0, n). Neighbouring threads have neighbouring i, which are
  // unsigned 32-bit numbers: a division by a 64-bit one is a hundred instructions. session.cpp refuses larger arrays.
  template <class Body>
  __device__ void for_each(int64_t n, Body body) const {
    const uint32_t end = uint32_t(n), step = uint32_t(tiles * threads);
    METAFAST_ROLLED for (uint32_t i = uint32_t(tile * threads + thread); i < end; i += step) body(i);
  }
};

struct PhaseDefaults {
  static constexpr int kShared = 0;          // elements of T of shared memory
  static constexpr bool kPersistent = true;  // whether it can be emitted for the persistent kernel
  // Blocks a multiprocessor shall hold at least. Saying so keeps the compiler from spilling registers to fit more.
  static constexpr int kBlocks = 1;
};

template <class T>
struct Frame {
  const BatchPlan* plan;
  T *tape, *tangent_tape;
  const T* x;                  // activations of value 0 if the plan says they are read in place
  const T *initial, *theta;    // all parameters at step 0; the adapted ones at this step
  const T* vector;             // tangent of the parameters
  T *gradient, *gradient_dot;  // of the learnt parameters
  T* scratch;
  RandomKey random;

  MF_HD int64_t examples() const { return plan->examples; }
  MF_HD const Value& value(int v) const { return plan->values[v]; }
  MF_HD int64_t examples(int v) const { return plan->values[v].shared ? 1 : plan->examples; }
  MF_HD int64_t rows(int v) const { return examples(v) * plan->values[v].rows; }

  MF_HD const T* activation(int v) const {
    return v == 0 && plan->input_in_place ? x : tape + plan->values[v].activation;
  }
  MF_HD T* activation_out(int v) const { return tape + plan->values[v].activation; }
  MF_HD T* cotangent(int v) const { return tape + plan->values[v].cotangent; }
  // Null where the tangent is known to be zero.
  MF_HD T* activation_dot(int v) const {
    return tangent_tape && plan->values[v].has_tangent ? tangent_tape + plan->values[v].activation_dot : nullptr;
  }
  MF_HD T* cotangent_dot(int v) const { return tangent_tape + plan->values[v].cotangent_dot; }

  MF_HD const ParameterPlan& parameter_plan(int p) const { return plan->parameters[p]; }
  MF_HD const T* parameter(int p) const {
    if (p < 0) return nullptr;
    const int64_t offset = plan->parameters[p].offset;
    return offset < plan->adapted_size ? theta + offset : initial + offset;
  }
  MF_HD const T* parameter_dot(int p) const {
    if (p < 0 || plan->parameters[p].offset >= plan->tangent_size) return nullptr;
    return vector + plan->parameters[p].offset;
  }
  MF_HD T* parameter_gradient(int p) const { return gradient + plan->parameters[p].offset; }
  MF_HD T* parameter_gradient_dot(int p) const { return gradient_dot + plan->parameters[p].offset; }
};

MF_HD bool wanted(GradientMode mode) { return mode != GradientMode::kIgnore; }

template <class T>
MF_HD void put(T* out, T value, GradientMode mode) {
  *out = mode == GradientMode::kAccumulate ? *out + value : value;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
