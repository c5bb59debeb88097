#pragma once

#include <pybind11/pybind11.h>

namespace metafast {

void bind_faults(pybind11::module_& m);

}  // namespace metafast
