// A Program as Python hands it over, checked, and its plans for batches of examples.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "core/plan.h"

namespace metafast {

using Shape = std::vector<int64_t>;

enum class Role { kAdapted, kMeta, kConstant };

struct NodeDescription {
  std::string op;
  std::vector<int> inputs;
  int output;
  std::vector<int> parameters;
  std::map<std::string, double> attributes;
  // Of a static linear map: for each element of the output, in the order of the user, as many elements of the inputs, one
  // behind the other, or -1; and the factors of these, 1 where none are given.
  std::vector<int32_t> table;
  std::vector<double> factors;
};

// How the linear layer on the input is done: like any other; by its products with the support set (cpu/first_layer.h); with
// its weight where the user has it, and then those behind it likewise (cpu/primitives/user_linear.h).
enum class FirstLinearForm { kPlain, kByGram, kInUserLayout };

// Which arrays a plan must provide for.
enum class Scope { kNone, kAdapted, kLearnt };

class Program {
 public:
  // Throws std::invalid_argument if anything does not fit together: kernels trust what gets past here.
  Program(std::vector<Shape> values, const std::vector<std::pair<Shape, Role>>& parameters,
          const std::vector<NodeDescription>& nodes, const std::string& loss,
          const std::map<std::string, double>& loss_attributes, const std::string& reduction, bool loss_sums,
          std::vector<double> class_weights);

  // A BatchPlan with the arrays it points to.
  struct Plan : BatchPlan {
    std::vector<Node> node_list;
    std::vector<Value> value_list;
    std::vector<ParameterPlan> parameter_list;
    std::vector<std::vector<int32_t>> tables;
    std::vector<std::vector<PoolWindow>> pool_windows;
    std::vector<std::vector<MapRun>> map_runs;
    std::vector<std::vector<double>> map_factors;
    std::vector<double> class_weights;
    double multiply_adds = 0;  // multiply-adds of a forward pass
  };
  std::shared_ptr<const Plan> plan(int64_t examples, int lanes, Scope gradient, Scope tangent, bool input_gradient,
                                   FirstLinearForm first, bool packed) const;
  // Whether all of it is arithmetic on the elements of vectors, which packs of tasks can do (cpu/kernels/pack.h).
  bool packable() const;
  bool is_random() const;  // some node draws random numbers
  // The same for csrc/cuda: without the nodes and the space that only the CPU's algorithms have a use for.
  std::shared_ptr<const Plan> device_plan(int64_t examples, int lanes, Scope gradient, Scope tangent,
                                          bool input_gradient) const;

  // The node that may have another form: a linear layer that alone reads the input and whose weight is adapted
  // and used nowhere else; null if there is none.
  const Node* first_layer_node() const;
  const Shape& value_shape(int value) const { return values_[size_t(value)]; }

  // In storage order: adapted, meta, constant. With `rows`, weights of one output stand as vectors.
  std::vector<ParameterPlan> parameter_plans(int lanes, bool rows) const;
  int parameter_count() const { return int(parameters_.size()); }
  int adapted_count() const { return adapted_count_; }
  int learnt_count() const { return learnt_count_; }
  // Position in storage order of a parameter of the description, and back.
  int stored_at(int parameter) const { return stored_at_[size_t(parameter)]; }

  LossKind loss() const { return loss_.kind; }
  int64_t input_size() const;
  int64_t output_size() const;
  int64_t output_rows() const;  // of each example: one of an image is a pixel

 private:
  struct ParameterInfo {
    int64_t numel;
    int32_t outputs, inputs, taps;
    bool used, row;  // by some node; as the one row of linear layers' weights, behind other layers
    bool table;      // of which nodes read rows
  };
  using Key = std::tuple<int64_t, int, Scope, Scope, bool, FirstLinearForm, bool, bool>;
  class Planner;  // program/planner.cpp

  void add_node(const NodeDescription& description);
  void set_loss(const std::string& name, const std::map<std::string, double>& attributes);
  void drop_dead_nodes();
  void drop_leading_flatten();
  void fuse_norm_pools();
  void find_rows();
  void use_parameter(int parameter, int64_t outputs, int64_t inputs, int64_t taps, bool table,
                     const std::string& where);
  std::shared_ptr<const Plan> find_plan(const Key& key) const;

  std::vector<Shape> values_;
  std::vector<bool> shared_;                     // of values: they have no axis of examples
  std::map<int, NodeDescription> descriptions_;  // of static linear maps, by their outputs
  std::vector<ParameterInfo> parameters_;        // storage order
  std::vector<int> stored_at_;
  std::vector<Shape> parameter_shapes_;  // storage order
  std::vector<Node> nodes_;              // without offsets and tables
  int output_ = 0, adapted_count_ = 0, learnt_count_ = 0;
  LossPlan loss_{};
  std::vector<double> class_weights_;
  mutable std::mutex mutex_;
  mutable std::map<Key, std::shared_ptr<const Plan>> plans_;
};

// Elements of the first `count` parameters.
inline int64_t size_of(const std::vector<ParameterPlan>& plans, int count) {
  return count == 0 ? 0 : plans[size_t(count) - 1].offset + plans[size_t(count) - 1].size;
}

}  // namespace metafast
