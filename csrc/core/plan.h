// Plain data shared by the planner (program/program.cpp, which may use the standard library) and the kernels (which may not).
//
// Everything a kernel needs to know about a Program for one batch size: shapes, where each array stands in the
// workspace, and which gradients somebody wants. Offsets and leading dimensions count elements, not bytes.
//
// Layout. A value of an example is a matrix of `rows` positions by `channels`, channels innermost ("channels last"),
// each row padded to `ld`, a multiple of the SIMD width. A weight of shape [outputs, inputs, taps...] stands as
// [taps][inputs][ld(outputs)]. Pads of parameters, cotangents and their tangents are always zero; pads of activations
// are arbitrary but finite for finite data, and no sum ever reads them.
#pragma once

#include <stdint.h>

namespace metafast {

enum class Op : int32_t;  // program/primitives.h

enum class LossKind : int32_t;  // formulas/losses/list.h; 0 is none

// A setting of a pointwise function or a loss: what Python calls it, and its value where Python names none.
struct Attribute {
  const char* name;
  double otherwise;
};

// What a batch's weighted sum of losses is divided by: the sum of its weights, the number of its examples, or nothing.
enum class Reduction : int32_t { kWeightedMean, kMean, kSum };

// What a gradient does to the array it is meant for.
enum class GradientMode : int32_t { kIgnore, kOverwrite, kAccumulate };

struct Value {
  int64_t rows;  // positions per example: height * width
  bool shared;   // one for all examples, as what is computed from parameters alone: it has no axis of examples
  int32_t height, width, channels;
  int32_t ld;            // of activations and their tangents
  int32_t ld_cotangent;  // of cotangents and their tangents: another one only for the input, which stands with the user
  int64_t activation, cotangent;          // offsets in the tape
  int64_t activation_dot, cotangent_dot;  // offsets in the tangent tape
  bool has_tangent, has_cotangent;
  bool cotangent_unread;        // it makes gradients of parameters and nothing else: the tangent pass does without
  bool cotangent_is_transient;  // it is not kept: all inner steps have one place for it, at this offset among such
};

// A parameter of shape [outputs, inputs, taps] with the user, [taps][inputs][ld] inside. A vector has inputs = taps = 1, and
// so, on the CPU, has the weight [1, n] of linear layers behind others. A table has the shape [inputs, outputs] with the
// user: inside, too, each of its rows is in one piece.
struct ParameterPlan {
  int64_t offset;
  int64_t size;  // taps * inputs * ld
  int32_t outputs, inputs, taps, ld;
  bool table;
  bool read_once = false;  // on packs: by one linear layer
  // Hessian-vector products read it, and its vector, where the user has them; write their own where the user wants it.
  bool in_user_layout = false, gradient_in_user_layout = false;
  int64_t numel() const { return int64_t(outputs) * inputs * taps; }
};

// The part of the input under one output position of a pooling, clipped to the input.
struct PoolWindow {
  int32_t row_begin, row_end, column_begin, column_end;
  double divisor;
};

// Index tables that make a convolution the indirect product of cpu/kernels/gemm.h. Offsets are into a buffer that holds
// `group` zero-padded images; `pixel` gives the first element under each output position, `tap` the way from there to
// each (tap, channel). `adjoint_*` are the same for the input gradient, which is a convolution of the output cotangents
// (spread by the stride) with flipped, transposed weights. Where the images have few channels, the adjoint is one plain
// product instead: of its row for a cotangent `adjoint_columns`, padded, are what that gives to each (tap, channel).
struct ConvTables {
  int32_t group;
  int32_t padded_height, padded_width, adjoint_height, adjoint_width;
  int32_t adjoint_top, adjoint_left;  // where the first cotangent lands in its buffer; may be negative
  int32_t adjoint_columns;            // or 0
  const int32_t *pixel, *tap, *adjoint_pixel, *adjoint_tap;
};

// Tiles of 2x2 outputs that cpu/kernels/winograd.h works on at a time, and the elements of scratch it needs.
constexpr int64_t kWinogradTiles = 48;
constexpr int64_t winograd_scratch(int64_t inputs, int64_t ld, int64_t out_ld) {
  return 2 * (ld + out_ld) + 16 * (kWinogradTiles * (ld + out_ld) + 32 + inputs * out_ld);
}

// Elements of scratch for a normalisation of `rows` rows: arrays of one element for each channel, and sums of blocks of rows.
constexpr int64_t kNormArrays = 8, kMomentRows = 128;
constexpr int64_t norm_scratch(int64_t rows, int64_t ld) {
  return (kNormArrays + 2 * ((rows + kMomentRows - 1) / kMomentRows)) * ld;
}

// Arrays of one element for each channel that a normalisation of each example by itself works with; and how many spans of
// so many rows it sums over before it sums over those sums.
constexpr int64_t kSetArrays = 24;
constexpr int64_t spans_of_block(int64_t positions) { return positions < kMomentRows ? kMomentRows / positions : 1; }
constexpr int64_t set_scratch(int64_t spans, int64_t positions, int64_t ld) {
  const int64_t each = spans_of_block(positions);
  return (kSetArrays + 2 * ((spans + each - 1) / each)) * ld;
}

// A stretch of a static linear map, of one example: to[i] += factor * from[i * stride] for i < count. Offsets are into the
// source that `input` numbers, and the output.
struct MapRun {
  int32_t input, from, to, count, stride;
  double factor;
};

// The same by rows of a sparse matrix, for a machine that gives each element to a thread: of element i the terms are
// begin[i] .. begin[i + 1], each an offset and a factor. Offsets into several sources are kNodeInputs * offset + source.
struct SparseRows {
  const int32_t *begin, *offset;
  const double* factor;
};

constexpr int kNodeInputs = 4, kNodeParameters = 4;

struct SparseTables {
  const MapRun *runs, *adjoint_runs;  // the second with the leading dimensions of cotangents
  int64_t run_count;
  // No element of the output, or of a source, occurs in two terms: it may be assigned.
  bool assigns, adjoint_assigns;
  SparseRows terms, adjoint[kNodeInputs];  // on a device
  int64_t term_count;
};

// Of a node that draws random numbers: which of the model's it is; how many elements, one behind another in the user's order,
// have one draw; and the numbers of 32 bits below this let them through.
struct RandomPlan {
  uint32_t number, each;
  uint64_t kept;
};

struct Node {
  Op op;
  int32_t input[kNodeInputs], output;
  int32_t parameter[kNodeParameters];  // -1: absent
  GradientMode input_mode[kNodeInputs], parameter_mode[kNodeParameters];
  int32_t kernel[2], stride[2], pad[2], dilation[2];
  double attribute[2];
  bool training;             // normalises by the batch's own statistics
  bool centred;              // a normalisation of each example by itself subtracts the mean,
  int32_t groups;            // and cuts the channels into so many
  bool bias_cancels;         // only nodes that subtract the mean read the output
  int64_t saved, saved_dot;  // offsets of what the node keeps for later passes, in the tape and the tangent tape
  ConvTables conv;
  const PoolWindow* windows;
  SparseTables map;
  RandomPlan random;
  // The tangent pass recomputes the cotangent of the input; a linear layer's transposes its weight.
  bool recomputes_cotangent, recomputes_transpose;
  bool after_relu;    // the first input has zeros
  int32_t masked_by;  // the value of a ReLU that alone reads the output: where it is zero, so are cotangents; or -1
  // On packs, a ReLU between two linear layers is `fused` into them.
  bool relu_follows, relu_precedes, fused;
};

struct LossPlan {
  LossKind kind;
  Reduction reduction;
  bool sums;  // over the elements of an example's output, whose mean its loss is otherwise
  double attribute[2];
  int64_t ignored;              // a class that counts nothing
  const double* class_weights;  // null: all 1
  int64_t class_count;          // of those
  int64_t saved, kept;          // offsets in the tape: loss of each example; what some losses keep of each
};

// A Program for batches of `examples`.
struct BatchPlan {
  int64_t examples;
  int32_t node_count, value_count, output;
  const Node* nodes;
  const Value* values;
  const ParameterPlan* parameters;
  LossPlan loss;
  // Parameters stand in the order adapted, meta, constant. Those below `gradient_size` get a gradient, those below
  // `tangent_size` have a tangent, those below `adapted_size` are moved by the inner loop.
  int64_t adapted_size, gradient_size, tangent_size;
  bool gradient_has_gaps;  // some parameter is used by no node: its gradient is zero and must be written
  bool input_in_place;     // activations of value 0 are read where the user, or a pack of tasks, has them
  int64_t tape_size, tangent_size_total, transient_size, scratch_size;
};

}  // namespace metafast
