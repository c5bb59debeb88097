#include "program/program.h"

#include <algorithm>
#include <cstdlib>

#include "formulas/losses/list.h"
#include "program/nodes.h"

namespace metafast {
namespace {

bool reads_input(const Node& node) {
  return std::find(std::begin(node.input), std::end(node.input), 0) != std::end(node.input);
}

}  // namespace

Program::Program(std::vector<Shape> values, const std::vector<std::pair<Shape, Role>>& parameters,
                 const std::vector<NodeDescription>& nodes, const std::string& loss,
                 const std::map<std::string, double>& loss_attributes, const std::string& reduction, bool loss_sums,
                 std::vector<double> class_weights)
    : values_(std::move(values)), shared_(values_.size(), false), class_weights_(std::move(class_weights)) {
  require(!values_.empty(), "no values");
  for (const Shape& shape : values_) {
    require(shape.size() >= 1 && shape.size() <= 3,
            "a value has " + std::to_string(shape.size()) + " dimensions, not 1 to 3");
    for (int64_t d : shape) require(d > 0 && d < (int64_t(1) << 31), "a value has an empty dimension");
    require(product(shape) < (int64_t(1) << 31), "a value is too large");
  }
  stored_at_.resize(parameters.size());
  for (Role role : {Role::kAdapted, Role::kMeta, Role::kConstant}) {
    for (size_t i = 0; i < parameters.size(); ++i)
      if (parameters[i].second == role) {
        stored_at_[i] = int(parameters_.size());
        const int64_t n = product(parameters[i].first);
        require(n > 0 && n < (int64_t(1) << 31), "parameter " + std::to_string(i) + " is empty or too large");
        parameters_.push_back({n, int32_t(n), 1, 1, false, false, false});
        parameter_shapes_.push_back(parameters[i].first);
      }
    if (role == Role::kAdapted) adapted_count_ = int(parameters_.size());
    if (role == Role::kMeta) learnt_count_ = int(parameters_.size());
  }
  for (const NodeDescription& node : nodes) add_node(node);
  output_ = nodes.empty() ? 0 : nodes.back().output;

  if (!loss.empty()) set_loss(loss, loss_attributes);
  loss_.sums = loss_sums;
  loss_.class_count = int64_t(class_weights_.size());
  const Shape& out = values_[size_t(output_)];
  require(class_weights_.empty() || loss_.class_count == (out.size() == 3 ? out.front() : out.back()),
          "the loss has weights of other classes than the output");
  const std::pair<const char*, Reduction> reductions[] = {
      {"weighted_mean", Reduction::kWeightedMean}, {"mean", Reduction::kMean}, {"sum", Reduction::kSum}};
  bool known = false;
  for (const auto& r : reductions)
    if (reduction == r.first) loss_.reduction = r.second, known = true;
  require(known, "unknown reduction " + reduction);
  drop_dead_nodes();
  drop_leading_flatten();
  fuse_norm_pools();
  find_rows();
}

void Program::set_loss(const std::string& name, const std::map<std::string, double>& attributes) {
  const auto info = std::find_if(std::begin(kLosses), std::end(kLosses),
                                 [&](const LossInfo& candidate) { return name == candidate.name; });
  require(info != std::end(kLosses), "unknown loss " + name);
  loss_.kind = info->kind;
  loss_.ignored = INT64_MIN;
  for (int i = 0; i < 2; ++i) {
    const Attribute& setting = info->attributes[i];
    if (!setting.name) continue;
    const auto given = attributes.find(setting.name);
    loss_.attribute[i] = given == attributes.end() ? setting.otherwise : given->second;
    if (setting.name == std::string("ignore_index")) loss_.ignored = int64_t(loss_.attribute[i]);
  }
}

void Program::use_parameter(int parameter, int64_t outputs, int64_t inputs, int64_t taps, bool table,
                            const std::string& where) {
  if (parameter < 0) return;
  ParameterInfo& info = parameters_[size_t(parameter)];
  require(info.numel == outputs * inputs * taps, where + ": a parameter has the wrong size");
  require(!info.used || (info.outputs == outputs && info.inputs == inputs && info.taps == taps && info.table == table),
          where + ": a tied parameter is used in two different layouts");
  info = {info.numel, int32_t(outputs), int32_t(inputs), int32_t(taps), true, false, table};
}

void Program::add_node(const NodeDescription& d) {
  const auto info = std::find_if(std::begin(kPrimitives), std::end(kPrimitives),
                                 [&](const PrimitiveInfo& candidate) { return d.op == candidate.name; });
  require(info != std::end(kPrimitives), "unknown op " + d.op);
  const int most = std::abs(info->inputs);  // negative: any number from one to that
  require(
      int(d.inputs.size()) == info->inputs || (info->inputs < 0 && int(d.inputs.size()) <= most && !d.inputs.empty()),
      d.op + ": wrong number of inputs");
  require(d.output > 0 && d.output < int(values_.size()), d.op + ": output out of range");
  Node node{};
  node.op = info->op;
  node.output = d.output;
  std::fill(std::begin(node.input), std::end(node.input), -1);
  for (size_t i = 0; i < d.inputs.size(); ++i) {
    bool written = d.inputs[i] == 0;
    for (const Node& earlier : nodes_) written |= earlier.output == d.inputs[i];
    require(written, d.op + ": reads a value that no earlier node writes");
    node.input[i] = d.inputs[i];
  }
  for (const Node& earlier : nodes_) require(earlier.output != d.output, d.op + ": writes a value twice");
  require(int(d.parameters.size()) <= info->parameters, d.op + ": too many parameters");
  std::fill(std::begin(node.parameter), std::end(node.parameter), -1);
  for (size_t i = 0; i < d.parameters.size(); ++i) {
    require(d.parameters[i] >= -1 && d.parameters[i] < int(parameters_.size()), d.op + ": parameter out of range");
    if (d.parameters[i] >= 0) node.parameter[i] = stored_at_[size_t(d.parameters[i])];
  }
  const auto use = [&](int parameter, int64_t outputs, int64_t inputs, int64_t taps) {
    use_parameter(parameter, outputs, inputs, taps, false, d.op);
  };
  const auto use_table = [&](int parameter, int64_t rows, int64_t outputs) {
    use_parameter(parameter, outputs, rows, 1, true, d.op);
  };
  shared_[size_t(d.output)] = d.attributes.count("per_example") == 0;
  for (int i : d.inputs) shared_[size_t(d.output)] = shared_[size_t(d.output)] && shared_[size_t(i)];
  require(!std::any_of(d.inputs.begin(), d.inputs.end(), [&](int i) { return shared_[size_t(i)]; }) ||
              has(node.op, kTakesShared),
          d.op + ": reads a value without an axis of examples");
  require(fits({d, node, values_, parameter_shapes_, learnt_count_, use, use_table}),
          d.op + ": shapes do not fit together");
  if (!d.table.empty()) descriptions_[d.output] = d;
  nodes_.push_back(node);
}

void Program::drop_dead_nodes() {
  std::vector<bool> live(values_.size(), false);
  live[size_t(output_)] = true;
  std::vector<Node> kept;
  for (auto node = nodes_.rbegin(); node != nodes_.rend(); ++node) {
    if (!live[size_t(node->output)]) continue;
    for (int input : node->input)
      if (input >= 0) live[size_t(input)] = true;
    kept.push_back(*node);
  }
  std::reverse(kept.begin(), kept.end());
  nodes_ = kept;
  for (ParameterInfo& p : parameters_) p.used = false;
  for (const Node& node : nodes_)
    for (int p : node.parameter)
      if (p >= 0) parameters_[size_t(p)].used = true;
}

// The user's memory already is the flattened input, whatever its shape.
void Program::drop_leading_flatten() {
  if (nodes_.empty() || nodes_[0].op != Op::kFlatten || nodes_[0].input[0] != 0) return;
  for (size_t i = 1; i < nodes_.size(); ++i)
    if (reads_input(nodes_[i])) return;
  const int flat = nodes_[0].output;
  values_[0] = values_[size_t(flat)];
  nodes_.erase(nodes_.begin());
  for (Node& node : nodes_)
    for (int& input : node.input)
      if (input == flat) input = 0;
  if (output_ == flat) output_ = 0;
}

// BatchNorm on batch statistics, ReLU and 2x2 max-pooling in a row, where nobody else reads what lies between.
void Program::fuse_norm_pools() {
  const auto only_reader = [&](const Node& from, const Node& to) {
    int readers = from.output == output_;
    for (const Node& node : nodes_)
      for (int input : node.input) readers += input == from.output;
    return readers == 1 && to.input[0] == from.output;
  };
  for (size_t i = 0; i + 2 < nodes_.size(); ++i) {
    Node &norm = nodes_[i], &relu = nodes_[i + 1], &pool = nodes_[i + 2];
    if (norm.op != Op::kBatchNorm || !norm.training || relu.op != Op::kRelu || pool.op != Op::kMaxPool2d) continue;
    if (!only_reader(norm, relu) || !only_reader(relu, pool)) continue;
    const Shape &in = values_[size_t(pool.input[0])], &out = values_[size_t(pool.output)];
    bool halves = true;
    for (int axis = 0; axis < 2; ++axis)
      halves &= pool.kernel[axis] == 2 && pool.stride[axis] == 2 && pool.pad[axis] == 0 && pool.dilation[axis] == 1 &&
                out[size_t(axis) + 1] == in[size_t(axis) + 1] / 2;
    if (!halves) continue;
    norm.op = Op::kBatchNormReluPool;
    norm.output = pool.output;
    nodes_.erase(nodes_.begin() + int64_t(i) + 1, nodes_.begin() + int64_t(i) + 3);
  }
}

void Program::find_rows() {
  for (ParameterInfo& p : parameters_) p.row = p.outputs == 1 && p.inputs > 1 && p.taps == 1;
  for (const Node& node : nodes_)
    for (int i = 0; i < 4; ++i)
      if (node.parameter[i] >= 0)
        parameters_[size_t(node.parameter[i])].row &= node.op == Op::kLinear && i == 0 && node.input[0] != 0;
}

int64_t Program::input_size() const { return product(values_[0]); }
int64_t Program::output_size() const { return product(values_[size_t(output_)]); }

int64_t Program::output_rows() const {
  const Shape& shape = values_[size_t(output_)];
  return shape.size() == 3 ? shape[1] * shape[2] : shape.size() == 2 ? shape[0] : 1;
}

const Node* Program::first_layer_node() const {
  const Node* found = nullptr;
  for (const Node& node : nodes_)
    if (reads_input(node)) {
      if (found || node.op != Op::kLinear || node.parameter[0] >= adapted_count_) return nullptr;
      found = &node;
    }
  if (!found) return nullptr;
  for (const Node& node : nodes_)
    for (int i = 0; i < 4; ++i)
      if (node.parameter[i] == found->parameter[0] && !(&node == found && i == 0)) return nullptr;
  return found;
}

}  // namespace metafast
