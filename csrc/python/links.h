// One link of a rule on one element, for tests of its adjoint.
#pragma once

#include <string>
#include <vector>

namespace metafast {

// Numbers in this order: theta, g, theta_0, states. A scaling link has none of its own.
std::vector<double> link_step(const std::string& name, int flags, int k, const std::vector<double>& hypers,
                              const std::vector<double>& element);
// The bars of the same numbers, then those of the hyper-parameters; by the hand-written adjoint, if there is one, or by duals.
std::vector<double> link_bars(const std::string& name, int flags, int k, const std::vector<double>& hypers,
                              const std::vector<double>& element, const std::vector<double>& bars, bool by_duals);

}  // namespace metafast
