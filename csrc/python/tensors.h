// What C++ may know of torch's tensors without being compiled against torch, whose C++ interface changes with every
// release: addresses, shapes, dtypes and devices, by DLPack's exchange functions where torch has them, and by methods of
// the Python object where not.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "engine/call.h"

namespace metafast {

// A new reference, or the Python error that came instead.
pybind11::object owned(PyObject* made);

// Where the elements of a tensor begin. One that is not contiguous is copied first and the copy added to `copies`.
Address address(pybind11::handle tensor, std::vector<pybind11::object>& copies);

// A new tensor of the same shape and dtype, and where its elements begin; none where it is not on the CPU, is empty, or memory
// or torch's exchange functions are missing. torch.empty_like takes a third longer, more where caches hold other things.
pybind11::object new_like(pybind11::handle tensor, bool zeros, Address* elements);

// The elements of a contiguous float32 or float64 tensor on the CPU; none where that, or torch's exchange functions, is
// missing.
struct Elements {
  void* data;
  int64_t count;
  bool is_double;
};
std::optional<Elements> elements(pybind11::handle tensor);

// Shape, dtype and device of each of some tensors and Nones as one value; none where torch's exchange functions are missing or
// cannot describe one of them, such as a subclass of Tensor.
std::optional<std::string> metadata(const std::vector<pybind11::handle>& tensors);

// Whether a tensor on the CPU holds classes 0 .. classes - 1 and no others; false also where that cannot be seen.
bool holds_classes(pybind11::handle tensor, int64_t classes);

// Whether no row (of the last axis) of a tensor on the CPU has a sum smaller than `share` of the sum of its magnitudes; false
// also where that cannot be seen.
bool rows_add_up(pybind11::handle tensor, double share);

}  // namespace metafast
