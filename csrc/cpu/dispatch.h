// Which kernels run: the newest instruction set that was compiled and that this processor has, or METAFAST_ISA.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace metafast {

std::vector<std::string> compiled_isas();
// Chosen at first use. Throws std::invalid_argument if METAFAST_ISA names one that is not compiled or not supported.
std::string selected_isa();

template <class T>
const Kernels<T>& kernels();

}  // namespace metafast
