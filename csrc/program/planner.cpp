// Plans of a Program for batches of examples: fusions chosen, arrays laid out.
#include <algorithm>

#include "formulas/losses/list.h"
#include "program/nodes.h"

namespace metafast {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Does it work in place: is its slope (formulas/functions) the same where the output stands for the input too?
bool slope_from_output(const Node& node) {
  return has(node.op, kSlopeFromOutput) || (has(node.op, kSlopeFromRising) && node.attribute[0] >= 0);
}

}  // namespace

std::vector<ParameterPlan> Program::parameter_plans(int lanes, bool rows) const {
  std::vector<ParameterPlan> plans;
  int64_t offset = 0;
  for (const ParameterInfo& p : parameters_) {
    const bool row = rows && p.row;
    const int32_t outputs = row ? p.inputs : p.outputs, inputs = row ? 1 : p.inputs;
    const int64_t ld = round_up(outputs, lanes), size = ld * inputs * p.taps;
    plans.push_back({offset, size, outputs, inputs, p.taps, int32_t(ld), p.table});
    offset += size;
  }
  return plans;
}

std::shared_ptr<const Program::Plan> Program::plan(int64_t examples, int lanes, Scope gradient, Scope tangent,
                                                   bool input_gradient, FirstLinearForm first, bool packed) const {
  return find_plan({examples, lanes, gradient, tangent, input_gradient, first, packed, false});
}

std::shared_ptr<const Program::Plan> Program::device_plan(int64_t examples, int lanes, Scope gradient, Scope tangent,
                                                          bool input_gradient) const {
  return find_plan({examples, lanes, gradient, tangent, input_gradient, FirstLinearForm::kPlain, false, true});
}

bool Program::packable() const {
  const auto flat = [](const Shape& shape) { return shape.size() == 1; };
  const auto allowed = [](const Node& node) { return has(node.op, kPackable); };
  return std::all_of(values_.begin(), values_.end(), flat) && std::all_of(nodes_.begin(), nodes_.end(), allowed);
}

bool Program::is_random() const {
  return std::any_of(nodes_.begin(), nodes_.end(), [](const Node& node) { return has(node.op, kRandom); });
}

// Makes one Plan, in stages of which each reads what those before it have left there.
class Program::Planner {
 public:
  Planner(const Program& program, const Key& key);
  std::shared_ptr<Plan> make();

 private:
  void take_shapes();
  void find_dependents();
  void count_readers();
  void place_values();
  void choose_first_form();
  void order_gradients();
  void fuse_into_linear();
  void place_extras();

  int64_t size_of(Scope scope) const;
  int64_t count(const Value& v) const { return (v.shared ? 1 : examples_) * v.rows; }
  bool in_place(const Node& pointwise) const;
  bool overwrites_activation(int value) const;
  bool cotangent_unread(const Node& writer) const;
  bool cotangent_cheap(int value) const;
  Value& value(int v) { return b_.value_list[size_t(v)]; }
  ParameterPlan& parameter(int p) { return b_.parameter_list[size_t(p)]; }
  static int64_t take(int64_t& top, int64_t n) { return NodePlan::take(top, n); }

  const Program& program_;
  const std::vector<Node>& nodes_;  // of the program: forms and algorithms not chosen yet
  int64_t examples_;
  int lanes_;
  Scope gradient_, tangent_;
  bool input_gradient_, in_packs_, for_device_;
  FirstLinearForm first_form_;
  std::shared_ptr<Plan> made_ = std::make_shared<Plan>();
  Plan& b_ = *made_;
  std::vector<int> value_readers_, parameter_readers_;  // how often nodes read each
  std::vector<const Node*> writer_, reader_;            // of each value; null for the input; the last
};

Program::Planner::Planner(const Program& program, const Key& key) : program_(program), nodes_(program.nodes_) {
  std::tie(examples_, lanes_, gradient_, tangent_, input_gradient_, first_form_, in_packs_, for_device_) = key;
}

std::shared_ptr<Program::Plan> Program::Planner::make() {
  b_.examples = examples_;
  b_.output = program_.output_;
  b_.loss = program_.loss_;
  b_.class_weights = program_.class_weights_;
  b_.loss.class_weights = b_.class_weights.empty() ? nullptr : b_.class_weights.data();
  b_.node_list = nodes_;
  take_shapes();
  find_dependents();
  count_readers();
  place_values();
  choose_first_form();
  order_gradients();
  fuse_into_linear();
  place_extras();
  b_.node_count = int32_t(b_.node_list.size());
  b_.value_count = int32_t(b_.value_list.size());
  b_.nodes = b_.node_list.data();
  b_.values = b_.value_list.data();
  b_.parameters = b_.parameter_list.data();
  return made_;
}

int64_t Program::Planner::size_of(Scope scope) const {
  const int count = scope == Scope::kNone      ? 0
                    : scope == Scope::kAdapted ? program_.adapted_count_
                                               : program_.learnt_count_;
  if (count == 0) return 0;
  const ParameterPlan& last = b_.parameter_list[size_t(count) - 1];
  return last.offset + last.size;
}

// Shapes and leading dimensions.
void Program::Planner::take_shapes() {
  b_.parameter_list = program_.parameter_plans(lanes_, !for_device_);
  b_.adapted_size = size_of(Scope::kAdapted);
  b_.gradient_size = size_of(gradient_);
  b_.tangent_size = size_of(tangent_);
  for (size_t p = 0; p < b_.parameter_list.size(); ++p)
    b_.gradient_has_gaps |= !program_.parameters_[p].used && b_.parameter_list[p].offset < b_.gradient_size;

  for (const Shape& shape : program_.values_) {
    Value v{};
    v.channels = int32_t(shape.size() == 3 ? shape[0] : shape.back());
    v.height = int32_t(shape.size() == 3 ? shape[1] : 0);
    v.width = int32_t(shape.size() == 3 ? shape[2] : 0);
    v.rows = shape.size() == 3 ? shape[1] * shape[2] : shape.size() == 2 ? shape[0] : 1;
    v.ld = v.ld_cotangent = int32_t(round_up(v.channels, lanes_));
    v.shared = program_.shared_[b_.value_list.size()];
    b_.value_list.push_back(v);
  }
  Value& input = value(0);
  const bool image = program_.values_[0].size() == 3;
  bool unpadded = true;
  for (const Node& node : nodes_)
    for (int i : node.input) unpadded &= i != 0 || has(node.op, kReadsUnpadded);
  if (unpadded) input.ld = input.channels;
  b_.input_in_place = in_packs_ || (unpadded && !(image && input.channels != 1));  // nothing is padded in packs
}

// Which values depend on what moves, and on what wants a gradient.
void Program::Planner::find_dependents() {
  value(0).has_cotangent = input_gradient_;
  for (const Node& node : nodes_) {
    Value& out = value(node.output);
    for (int input : node.input)
      if (input >= 0) {
        out.has_tangent |= value(input).has_tangent;
        out.has_cotangent |= value(input).has_cotangent;
      }
    for (int p : node.parameter)
      if (p >= 0) {
        out.has_tangent |= parameter(p).offset < b_.tangent_size;
        out.has_cotangent |= parameter(p).offset < b_.gradient_size;
      }
  }
}

void Program::Planner::count_readers() {
  value_readers_.resize(b_.value_list.size());
  parameter_readers_.resize(b_.parameter_list.size());
  writer_.resize(b_.value_list.size());
  reader_.resize(b_.value_list.size());
  for (const Node& node : nodes_) {
    for (int input : node.input)
      if (input >= 0) ++value_readers_[size_t(input)], reader_[size_t(input)] = &node;
    for (int p : node.parameter)
      if (p >= 0) ++parameter_readers_[size_t(p)];
    writer_[size_t(node.output)] = &node;
  }
}

// A pointwise node works in place if nobody else reads its input and the node that wrote that does not look back at it.
bool Program::Planner::in_place(const Node& node) const {
  if (node.input[0] < 0) return false;
  const int value = node.input[0];
  const Node* writer = writer_[size_t(value)];
  return !for_device_ && slope_from_output(node) && value_readers_[size_t(value)] == 1 && value != b_.output &&
         writer && has(writer->op, kForgetsOutput);
}

// Without a tangent pass, a cotangent may overwrite its activation if the one node that reads it works in place and the
// one that wrote it does not look at it again.
bool Program::Planner::overwrites_activation(int value) const {
  if (for_device_ || b_.tangent_size != 0 || value == b_.output || value_readers_[size_t(value)] != 1) return false;
  for (const Node& node : nodes_)
    for (int input : node.input)
      if (input == value && !has(node.op, kFreesInput)) return false;
  return has(writer_[size_t(value)]->op, kBilinear);
}

// A tangent pass multiplies the cotangent of a layer's output by tangents of its input, if that has any. A piecewise linear
// function hands on what it is not asked for.
bool Program::Planner::cotangent_unread(const Node& writer) const {
  if (writer.input[0] < 0) return false;
  const Value& in = b_.value_list[size_t(writer.input[0])];
  if (has(writer.op, kPiecewiseLinear)) return in.cotangent_unread;
  return has(writer.op, kBilinear) && !in.has_tangent && !in.has_cotangent;
}

// Made of the reader's by a multiplication or two for each element: sooner recomputed than fetched from a long tape.
bool Program::Planner::cotangent_cheap(int value) const {
  if (in_packs_ || value == b_.output || value_readers_[size_t(value)] != 1) return false;
  const Node& reader = *reader_[size_t(value)];
  return reader.op == Op::kLinear ? program_.parameters_[size_t(reader.parameter[0])].row
                                  : slope_from_output(reader) && !has(reader.op, kPiecewiseLinear);
}

void Program::Planner::place_values() {
  Value& input = value(0);
  if (!b_.input_in_place) input.activation = take(b_.tape_size, examples_ * input.rows * input.ld);
  if (input.has_cotangent) {
    input.cotangent = take(b_.tape_size, examples_ * input.rows * input.ld_cotangent);
    input.cotangent_dot = take(b_.tangent_size_total, examples_ * input.rows * input.ld_cotangent);
  }
  for (const Node& node : nodes_) {
    Value& v = value(node.output);
    const int64_t n = count(v);
    const Value* same = in_place(node) ? &value(node.input[0]) : nullptr;
    v.activation = same ? same->activation : take(b_.tape_size, n * v.ld);
    if (v.has_tangent) v.activation_dot = same ? same->activation_dot : take(b_.tangent_size_total, n * v.ld);
    if (!v.has_cotangent) continue;
    v.cotangent_unread = cotangent_unread(node);
    v.cotangent_dot = same ? same->cotangent_dot : take(b_.tangent_size_total, n * v.ld_cotangent);
    if (same && has(node.op, kPiecewiseLinear)) {
      v.cotangent_is_transient = same->cotangent_is_transient;
      v.cotangent = same->cotangent;
    } else {
      v.cotangent_is_transient =
          !for_device_ && b_.tangent_size != 0 && (v.cotangent_unread || cotangent_cheap(node.output));
      v.cotangent = v.cotangent_is_transient             ? take(b_.transient_size, n * v.ld_cotangent)
                    : overwrites_activation(node.output) ? v.activation
                                                         : take(b_.tape_size, n * v.ld_cotangent);
    }
  }
  const Value& z = value(b_.output);
  b_.loss.saved = take(b_.tape_size, examples_);
  if (has(b_.loss.kind, kKeepsProbabilities)) b_.loss.kept = take(b_.tape_size, examples_ * z.rows * z.ld_cotangent);
  if (in_packs_) b_.scratch_size = examples_ * z.rows * (5 * z.channels + 7);  // a lane's copies, padded: LossOnLanes
}

void Program::Planner::choose_first_form() {
  if (first_form_ == FirstLinearForm::kPlain) return;
  Node& first = b_.node_list[size_t(program_.first_layer_node() - nodes_.data())];
  if (first_form_ == FirstLinearForm::kByGram) {
    first.op = Op::kFirstLinear;
    return;
  }
  for (Node& node : b_.node_list) {
    if (node.op != Op::kLinear) continue;
    const bool whole = value(node.input[0]).channels % lanes_ == 0;
    if (!whole || program_.parameters_[size_t(node.parameter[0])].row) continue;
    node.op = &node == &first ? Op::kUserLinear : Op::kUserHiddenLinear;
    ParameterPlan& weight = parameter(node.parameter[0]);
    weight.in_user_layout = &node == &first, weight.gradient_in_user_layout = true;
  }
}

// The reverse pass writes a gradient where it comes to it first, and adds to it later.
void Program::Planner::order_gradients() {
  std::vector<bool> parameter_written(b_.parameter_list.size()), value_written(b_.value_list.size());
  const auto mode = [](bool wanted, std::vector<bool>& written, int i) {
    if (!wanted) return GradientMode::kIgnore;
    const bool before = written[size_t(i)];
    written[size_t(i)] = true;
    return before ? GradientMode::kAccumulate : GradientMode::kOverwrite;
  };
  for (auto node = b_.node_list.rbegin(); node != b_.node_list.rend(); ++node) {
    const bool reached = value(node->output).has_cotangent;
    for (int i = 0; i < kNodeInputs; ++i) {
      const int v = node->input[i];
      node->input_mode[i] = mode(v >= 0 && reached && value(v).has_cotangent, value_written, v);
    }
    for (int i = 0; i < kNodeParameters; ++i) {
      const int p = node->parameter[i];
      node->parameter_mode[i] = mode(p >= 0 && parameter(p).offset < b_.gradient_size, parameter_written, p);
    }
  }
}

// What the linear layers of packs do besides (cpu/primitives/packed_linear.h).
void Program::Planner::fuse_into_linear() {
  if (!in_packs_) return;
  for (const Node& node : nodes_)
    if (node.op == Op::kLinear)
      parameter(node.parameter[0]).read_once = parameter_readers_[size_t(node.parameter[0])] == 1;

  for (Node& node : b_.node_list) {
    if (node.op != Op::kRelu || !in_place(node) || node.output == b_.output || value_readers_[size_t(node.output)] != 1)
      continue;
    Node *writer = nullptr, *reader = nullptr;
    for (Node& other : b_.node_list) {
      if (other.output == node.input[0]) writer = &other;
      for (int input : other.input)
        if (input == node.output) reader = &other;
    }
    if (writer->op != Op::kLinear || reader->op != Op::kLinear) continue;
    writer->relu_follows = reader->relu_precedes = node.fused = true;
  }
}

void Program::Planner::place_extras() {
  for (Node& node : b_.node_list) {
    node.bias_cancels = node.output != b_.output;
    for (const Node& reader : nodes_)
      for (int input : reader.input)
        if (input == node.output) node.bias_cancels &= has(reader.op, kSubtractsMean) && reader.training;
    const int in = node.input[0];
    if (has(node.op, kBilinear) && node.parameter[0] >= 0) {
      const Value& positions = value(node.op == Op::kConvTranspose2d ? in : node.output);
      b_.multiply_adds += double(count(positions)) * double(parameter(node.parameter[0]).numel());
    }
    node.after_relu = in >= 0 && writer_[size_t(in)] && writer_[size_t(in)]->op == Op::kRelu;
    const bool into_relu = value_readers_[size_t(node.output)] == 1 && node.output != b_.output &&
                           reader_[size_t(node.output)]->op == Op::kRelu;
    node.masked_by = into_relu ? reader_[size_t(node.output)]->output : -1;
    node.recomputes_cotangent =
        in >= 0 && value(in).cotangent_is_transient && cotangent_cheap(in) && !value(in).cotangent_unread;
    const bool row = node.parameter[0] >= 0 && program_.parameters_[size_t(node.parameter[0])].row;
    const auto description = program_.descriptions_.find(node.output);
    plan_node({b_, node, lanes_, for_device_, in_packs_, row,
               description == program_.descriptions_.end() ? nullptr : &description->second});
  }
}

std::shared_ptr<const Program::Plan> Program::find_plan(const Key& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second;
  if (plans_.size() >= 64) plans_.clear();  // whoever still uses one holds it
  return plans_[key] = Planner(*this, key).make();
}

}  // namespace metafast
