#include "program/sparse_tables.h"

#include <algorithm>
#include <functional>

#include "program/node_check.h"

namespace metafast {
namespace {

// Where elements of a value or a parameter stand, numbered in the user's order; how many places there are.
struct Layout {
  std::function<int64_t(int64_t)> at;
  int64_t elements, places;
};

Layout layout_of(const Value& v, int64_t ld) {
  const int64_t rows = v.rows, channels = v.channels;
  const auto last = [=](int64_t i) { return i / channels * ld + i % channels; };
  const auto first = [=](int64_t i) { return i % rows * ld + i / rows; };  // of images, stored channels last
  return {v.height > 0 ? std::function<int64_t(int64_t)>(first) : last, rows * channels, rows * ld};
}

Layout layout_of(const ParameterPlan& p) {
  const int64_t inputs = p.inputs, outputs = p.outputs, taps = p.taps, ld = p.ld;
  if (p.table) return {[=](int64_t i) { return i / outputs * ld + i % outputs; }, p.numel(), p.size};
  const auto at = [=](int64_t i) {
    const int64_t tap = i % taps, input = i / taps % inputs, output = i / (taps * inputs);
    return (tap * inputs + input) * ld + output;
  };
  return {at, p.numel(), p.size};
}

struct Term {
  int32_t input;
  int64_t from, to;
  double factor;
};

// All terms, those of one place of the output in the order of the table; and their runs, in an order that gives long ones:
// the first term of every place, then the second.
std::vector<Term> terms_of(const NodeDescription& d, const std::vector<Layout>& sources, const Layout& out) {
  const int64_t each = int64_t(d.table.size()) / out.elements;
  std::vector<int64_t> element(size_t(out.places), -1);  // in the order of the places
  for (int64_t i = 0; i < out.elements; ++i) element[size_t(out.at(i))] = i;
  std::vector<Term> terms;
  for (int64_t k = 0; k < each; ++k)
    for (int64_t to = 0; to < out.places; ++to) {
      if (element[size_t(to)] < 0) continue;
      const size_t entry = size_t(element[size_t(to)] * each + k);
      int64_t from = d.table[entry];
      if (from < 0) continue;
      int32_t input = 0;
      for (; from >= sources[size_t(input)].elements; ++input) from -= sources[size_t(input)].elements;
      terms.push_back({input, sources[size_t(input)].at(from), to, d.factors.empty() ? 1.0 : d.factors[entry]});
    }
  return terms;
}

const MapRun* runs_of(Program::Plan& plan, const std::vector<Term>& terms, int64_t& count) {
  std::vector<MapRun> runs;
  for (const Term& t : terms) {
    if (!runs.empty()) {
      MapRun& last = runs.back();
      const int64_t step = t.from - (last.from + int64_t(last.count - 1) * last.stride);
      if (t.input == last.input && t.factor == last.factor && t.to == last.to + last.count &&
          (last.count == 1 || step == last.stride)) {
        last.stride = int32_t(step);
        ++last.count;
        continue;
      }
    }
    runs.push_back({t.input, int32_t(t.from), int32_t(t.to), 1, 1, t.factor});
  }
  count = int64_t(runs.size());
  plan.map_runs.push_back(std::move(runs));
  return plan.map_runs.back().data();
}

// `row` says which element of rows a term belongs to, `offset` what its other end is.
template <class Row, class Offset>
SparseRows rows_of(Program::Plan& plan, const std::vector<Term>& terms, int64_t rows, Row row, Offset offset) {
  std::vector<int32_t> begin(size_t(rows) + 1, 0), others(terms.size());
  std::vector<double> factors(terms.size());
  for (const Term& t : terms)
    if (row(t) >= 0) ++begin[size_t(row(t)) + 1];
  for (size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
  std::vector<int32_t> next = begin;
  for (const Term& t : terms)
    if (row(t) >= 0) {
      const size_t at = size_t(next[size_t(row(t))]++);
      others[at] = int32_t(offset(t)), factors[at] = t.factor;
    }
  plan.tables.push_back(std::move(begin)), plan.tables.push_back(std::move(others));
  plan.map_factors.push_back(std::move(factors));
  return {plan.tables[plan.tables.size() - 2].data(), plan.tables.back().data(), plan.map_factors.back().data()};
}

bool all_different(const std::vector<Term>& terms, const std::function<int64_t(const Term&)>& key) {
  std::vector<int64_t> keys;
  for (const Term& t : terms) keys.push_back(key(t));
  std::sort(keys.begin(), keys.end());
  return std::adjacent_find(keys.begin(), keys.end()) == keys.end();
}

}  // namespace

void make_sparse_tables(Program::Plan& plan, Node& node, const NodeDescription& d, bool for_device) {
  const Value& y = plan.value_list[size_t(node.output)];
  std::vector<Layout> sources, adjoint_sources;
  if (node.parameter[0] >= 0) {
    sources = adjoint_sources = {layout_of(plan.parameter_list[size_t(node.parameter[0])])};
  } else {
    for (int i = 0; i < kNodeInputs && node.input[i] >= 0; ++i) {
      const Value& x = plan.value_list[size_t(node.input[i])];
      sources.push_back(layout_of(x, x.ld)), adjoint_sources.push_back(layout_of(x, x.ld_cotangent));
    }
  }
  int64_t most = y.rows * y.ld;
  for (const Layout& source : sources) most = std::max(most, source.places);
  require(most < (int64_t(1) << 29), d.op + ": a value is too large");
  const std::vector<Term> terms = terms_of(d, sources, layout_of(y, y.ld));
  const std::vector<Term> adjoint = terms_of(d, adjoint_sources, layout_of(y, y.ld_cotangent));
  SparseTables& map = node.map;
  map.term_count = int64_t(terms.size());
  if (for_device) {
    const auto to = [](const Term& t) { return t.to; };
    map.terms = rows_of(plan, terms, y.rows * y.ld, to, [](const Term& t) { return t.from * kNodeInputs + t.input; });
    for (size_t i = 0; i < adjoint_sources.size(); ++i)
      map.adjoint[i] = rows_of(
          plan, adjoint, adjoint_sources[i].places, [&](const Term& t) { return t.input == int(i) ? t.from : -1; }, to);
    return;
  }
  map.assigns = all_different(terms, [](const Term& t) { return t.to; });
  map.adjoint_assigns = all_different(adjoint, [](const Term& t) { return t.from * kNodeInputs + t.input; });
  map.runs = runs_of(plan, terms, map.run_count);
  map.adjoint_runs = runs_of(plan, adjoint, map.run_count);
}

}  // namespace metafast
