// What a primitive is given to check a node that Python describes and to read its attributes from.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

#include "program/program.h"

namespace metafast {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("invalid Program: " + message);
}

inline int64_t product(const Shape& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

struct NodeCheck {
  const NodeDescription& description;
  Node& node;  // inputs, output and parameters are filled in
  const std::vector<Shape>& values;
  const std::vector<Shape>& parameter_shapes;  // storage order
  int learnt_count;
  // Says how a parameter, if there is one, is laid out: [outputs, inputs, taps].
  std::function<void(int parameter, int64_t outputs, int64_t inputs, int64_t taps)> use;
  // The same of a table, of which nodes read rows: [rows, outputs].
  std::function<void(int parameter, int64_t rows, int64_t outputs)> use_table;

  const Shape& in(int i = 0) const { return values[size_t(node.input[i])]; }
  const Shape& out() const { return values[size_t(node.output)]; }
  void demand(bool condition, const std::string& message) const { require(condition, description.op + ": " + message); }

  double attribute(const std::string& name, double otherwise) const {
    const auto found = description.attributes.find(name);
    return found == description.attributes.end() ? otherwise : found->second;
  }
  // Attributes name_h and name_w.
  void pair(const std::string& name, int32_t* to, double otherwise) const {
    to[0] = int32_t(attribute(name + "_h", otherwise));
    to[1] = int32_t(attribute(name + "_w", otherwise));
    demand(to[0] >= (otherwise > 0) && to[1] >= (otherwise > 0) && to[0] < 65536 && to[1] < 65536,
           name + " out of range");
  }
};

}  // namespace metafast
