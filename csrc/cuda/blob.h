// Blocks of bytes put together here and copied to the device: a session's constants, and the addresses of a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/call.h"

namespace metafast {

// Bytes that stand on the device as they stand here; offsets become addresses once the place is known.
class Blob {
 public:
  template <class V>
  int64_t put(const V* values, size_t count) {
    const size_t begin = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(begin + count * sizeof(V));
    if (count) std::memcpy(bytes_.data() + begin, values, count * sizeof(V));
    return int64_t(begin);
  }
  // The pointer at `place` is to hold the address of `target` bytes into the blob.
  void point(int64_t place, int64_t target) { pointers_.push_back({place, target}); }
  std::vector<unsigned char> placed(Address base) const {
    std::vector<unsigned char> copy = bytes_;
    for (const auto& [place, target] : pointers_) {
      const Address address = base + Address(target);
      std::memcpy(copy.data() + place, &address, sizeof address);
    }
    return copy;
  }
  size_t size() const { return bytes_.size(); }

 private:
  std::vector<unsigned char> bytes_;
  std::vector<std::pair<int64_t, int64_t>> pointers_;
};

// A struct of addresses with its lists behind it, in words, as it will stand at `address`.
class AddressBlock {
 public:
  AddressBlock(int64_t bytes, size_t first, Address address)
      : words_(size_t(bytes) / 8, 0), top_(aligned_to_16(first)), address_(address) {}

  Address address() const { return address_; }
  const std::vector<uint64_t>& words() const { return words_; }

  // Copies a list behind what is there and returns its address on the device.
  template <class V>
  V* list(const std::vector<V>& values) {
    if (values.empty()) return nullptr;
    const size_t begin = top_;
    std::memcpy(reinterpret_cast<unsigned char*>(words_.data()) + begin, values.data(), values.size() * sizeof(V));
    top_ += aligned_to_16(values.size() * sizeof(V));
    return at<V>(address_ + Address(begin));
  }
  template <class V>
  void begin_with(const V& value) {
    std::memcpy(words_.data(), &value, sizeof value);
  }

 private:
  static size_t aligned_to_16(size_t bytes) { return (bytes + 15) / 16 * 16; }

  std::vector<uint64_t> words_;
  size_t top_;
  const Address address_;
};

#define METAFAST_MEMBER(BASE, STRUCT, MEMBER) ((BASE) + int64_t(offsetof(STRUCT, MEMBER)))

// The tables of a sparse map, whose pointers stand at `at` in a list.
inline void put_rows(Blob& blob, SparseRows& rows, int64_t count, int64_t at,
                     std::vector<std::pair<int64_t, int64_t>>& tables) {
  if (!rows.begin) return;
  const size_t terms = size_t(rows.begin[count]);
  tables.push_back({METAFAST_MEMBER(at, SparseRows, begin), blob.put(rows.begin, size_t(count) + 1)});
  tables.push_back({METAFAST_MEMBER(at, SparseRows, offset), blob.put(rows.offset, terms)});
  tables.push_back({METAFAST_MEMBER(at, SparseRows, factor), blob.put(rows.factor, terms)});
  rows = SparseRows{};
}
inline void put_tables(Blob& blob, const BatchPlan& plan, Node& node, int64_t at,
                       std::vector<std::pair<int64_t, int64_t>>& tables) {
  const Value& out = plan.values[node.output];
  const int64_t map = METAFAST_MEMBER(at, Node, map);
  put_rows(blob, node.map.terms, out.rows * out.ld, METAFAST_MEMBER(map, SparseTables, terms), tables);
  for (int i = 0; i < kNodeInputs; ++i) {
    const bool of_parameter = node.parameter[0] >= 0;
    if (!of_parameter && node.input[i] < 0) break;
    const int64_t places = of_parameter ? plan.parameters[node.parameter[0]].size
                                        : plan.values[node.input[i]].rows * plan.values[node.input[i]].ld_cotangent;
    put_rows(blob, node.map.adjoint[i], places,
             METAFAST_MEMBER(map, SparseTables, adjoint) + int64_t(size_t(i) * sizeof(SparseRows)), tables);
  }
}

// A plan with its lists. Tables of the CPU's convolution stay behind; windows of pooling come along.
inline int64_t put_plan(Blob& blob, const BatchPlan& plan, int64_t parameters_at) {
  std::vector<Node> nodes(plan.nodes, plan.nodes + plan.node_count);
  std::vector<std::pair<size_t, int64_t>> windows;
  std::vector<std::pair<int64_t, int64_t>> tables;  // places of pointers in the list of nodes, and what they point to
  for (size_t i = 0; i < nodes.size(); ++i) {
    Node& node = nodes[i];
    node.conv = ConvTables{};
    if (node.windows) windows.push_back({i, blob.put(node.windows, size_t(plan.values[node.output].rows))});
    node.windows = nullptr;
    put_tables(blob, plan, node, int64_t(i * sizeof(Node)), tables);
  }
  const int64_t nodes_at = blob.put(nodes.data(), nodes.size());
  for (const auto& [i, to] : windows)
    blob.point(METAFAST_MEMBER(nodes_at + int64_t(i * sizeof(Node)), Node, windows), to);
  for (const auto& [place, to] : tables) blob.point(nodes_at + place, to);
  const int64_t values_at = blob.put(plan.values, size_t(plan.value_count));
  const int64_t weights_at = blob.put(plan.loss.class_weights, size_t(plan.loss.class_count));
  const int64_t plan_at = blob.put(&plan, 1);
  blob.point(METAFAST_MEMBER(plan_at, BatchPlan, nodes), nodes_at);
  blob.point(METAFAST_MEMBER(plan_at, BatchPlan, values), values_at);
  blob.point(METAFAST_MEMBER(plan_at, BatchPlan, parameters), parameters_at);
  if (plan.loss.class_weights)
    blob.point(METAFAST_MEMBER(METAFAST_MEMBER(plan_at, BatchPlan, loss), LossPlan, class_weights), weights_at);
  return plan_at;
}

#undef METAFAST_MEMBER

}  // namespace metafast
