#include "python/tensors.h"

#include <math.h>
#include <string.h>

#include <new>
#include <string>

#include "python/blocks.h"

namespace py = pybind11;

namespace metafast {

namespace {

// The part of DLPack's binary interface (version 1) that is used here: dmlc/dlpack, "DLPackExchangeAPI".
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct ManagedTensor {  // "DLManagedTensorVersioned"
  uint32_t major, minor;
  void* context;
  void (*deleter)(ManagedTensor*);
  uint64_t flags;
  DLTensor tensor;
};

struct DLPackExchange {
  uint32_t major, minor;
  DLPackExchange* previous;
  void (*unused[2])();
  int (*take)(ManagedTensor* tensor, void** out);  // a Python tensor, whose own `tensor` is from then on
  int (*view)(void* tensor, DLTensor* out);        // owns nothing, costs nothing, waits for nothing
  void (*unused_stream)();
};

struct Torch {
  PyTypeObject *tensor, *parameter;
  const DLPackExchange* exchange;
};

const Torch& torch() {
  static const Torch found = [] {
    const py::object tensor = py::module_::import("torch").attr("Tensor");
    const py::object parameter = py::module_::import("torch.nn").attr("Parameter");
    const DLPackExchange* exchange = nullptr;
    const py::object capsule = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api"))
      exchange = static_cast<const DLPackExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (exchange && exchange->major != 1) exchange = exchange->previous;
    // Types live as long as the interpreter.
    return Torch{reinterpret_cast<PyTypeObject*>(py::object(tensor).release().ptr()),
                 reinterpret_cast<PyTypeObject*>(py::object(parameter).release().ptr()), exchange};
  }();
  return found;
}

// Subclasses may mean something else by their data.
bool view(PyObject* tensor, DLTensor* out) {
  const Torch& t = torch();
  if (!t.exchange || !t.exchange->view || (Py_TYPE(tensor) != t.tensor && Py_TYPE(tensor) != t.parameter)) return false;
  if (t.exchange->view(tensor, out) == 0) return true;
  PyErr_Clear();
  return false;
}

bool contiguous(const DLTensor& t) {
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

py::object ask(py::handle tensor, PyObject* method) { return owned(PyObject_CallMethodNoArgs(tensor.ptr(), method)); }

template <class T>
void append(std::string& to, const T* values, size_t count) {
  to.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

}  // namespace

py::object owned(PyObject* made) {
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

Address address(py::handle tensor, std::vector<py::object>& copies) {
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  static PyObject* const is_contiguous = PyUnicode_InternFromString("is_contiguous");
  DLTensor seen;
  Address found = 0;
  if (view(tensor.ptr(), &seen) && seen.strides && contiguous(seen)) {
    found = reinterpret_cast<Address>(seen.data) + seen.byte_offset;
  } else {
    if (ask(tensor, is_contiguous).ptr() != Py_True) {
      copies.push_back(tensor.attr("contiguous")());
      tensor = copies.back();
    }
    found = PyLong_AsUnsignedLongLong(ask(tensor, data_ptr).ptr());
  }
  if (found == 0) throw std::invalid_argument("native call: an empty tensor");
  return found;
}

py::object new_like(py::handle tensor, bool zeros, Address* elements) {
  constexpr int kCpu = 1;
  constexpr size_t kAlign = size_t(Blocks::kAlign);
  DLTensor like;
  if (!view(tensor.ptr(), &like) || !torch().exchange->take || like.device_type != kCpu) return {};
  int64_t bytes = like.bits / 8;
  for (int i = 0; i < like.ndim; ++i)
    if (__builtin_mul_overflow(bytes, like.shape[i], &bytes) || bytes == 0) return {};
  // In front of the elements, in the same piece of memory, what torch gives back when it needs them no longer.
  const size_t head = (sizeof(ManagedTensor) + 2 * size_t(like.ndim) * sizeof(int64_t) + kAlign - 1) / kAlign * kAlign;
  void* const memory = Blocks::take(head + size_t(bytes));
  if (!memory) return {};
  auto* const made = new (memory) ManagedTensor{};
  made->major = torch().exchange->major, made->minor = torch().exchange->minor;
  made->context = reinterpret_cast<void*>(head + size_t(bytes));
  made->deleter = [](ManagedTensor* self) { Blocks::give(self, reinterpret_cast<size_t>(self->context)); };
  made->tensor = like;
  made->tensor.data = static_cast<char*>(memory) + head, made->tensor.byte_offset = 0;
  made->tensor.shape = reinterpret_cast<int64_t*>(made + 1), made->tensor.strides = made->tensor.shape + like.ndim;
  for (int64_t i = like.ndim - 1, stride = 1; i >= 0; stride *= like.shape[i--])
    made->tensor.shape[i] = like.shape[i], made->tensor.strides[i] = stride;
  if (zeros) memset(made->tensor.data, 0, size_t(bytes));
  *elements = reinterpret_cast<Address>(made->tensor.data);
  void* taken = nullptr;
  if (torch().exchange->take(made, &taken) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(taken));
}

std::optional<Elements> elements(py::handle tensor) {
  constexpr int kCpu = 1, kFloat = 2;
  DLTensor seen;
  if (!view(tensor.ptr(), &seen) || !seen.strides || !contiguous(seen)) return std::nullopt;
  if (seen.device_type != kCpu || seen.code != kFloat || seen.lanes != 1 || (seen.bits != 32 && seen.bits != 64))
    return std::nullopt;
  int64_t count = 1;
  for (int i = 0; i < seen.ndim; ++i) count *= seen.shape[i];
  return Elements{static_cast<char*>(seen.data) + seen.byte_offset, count, seen.bits == 64};
}

std::optional<std::string> metadata(const std::vector<py::handle>& tensors) {
  std::string key;
  key.reserve(512);
  for (py::handle tensor : tensors) {
    if (tensor.is_none()) {
      key.push_back('\0');
      continue;
    }
    DLTensor seen;
    if (!view(tensor.ptr(), &seen)) return std::nullopt;
    key.push_back('\1');
    const int32_t head[] = {seen.device_type, seen.device_id, seen.code, seen.bits, seen.lanes, seen.ndim};
    append(key, head, 6);
    append(key, seen.shape, size_t(seen.ndim));
  }
  return key;
}

bool holds_classes(py::handle tensor, int64_t classes) {
  constexpr int kCpu = 1, kSigned = 0;
  DLTensor seen;
  if (!view(tensor.ptr(), &seen) || !seen.strides || !contiguous(seen)) return false;
  if (seen.device_type != kCpu || seen.code != kSigned || seen.bits != 64 || seen.lanes != 1) return false;
  int64_t count = 1;
  for (int i = 0; i < seen.ndim; ++i) count *= seen.shape[i];
  const auto* labels = reinterpret_cast<const int64_t*>(static_cast<char*>(seen.data) + seen.byte_offset);
  uint64_t outside = 0;  // its highest bit: of a label below zero, or of what is left to the highest class
  for (int64_t i = 0; i < count; ++i) outside |= uint64_t(labels[i]) | (uint64_t(classes - 1) - uint64_t(labels[i]));
  return count > 0 && int64_t(outside) >= 0;
}

namespace {

template <class T>
bool add_up(const T* values, int64_t rows, int64_t columns, double share) {
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0, size = 0;
    for (int64_t i = 0; i < columns; ++i) sum += values[row * columns + i], size += fabs(values[row * columns + i]);
    if (fabs(sum) < share * size) return false;
  }
  return true;
}

}  // namespace

bool rows_add_up(py::handle tensor, double share) {
  DLTensor seen;
  const std::optional<Elements> found = elements(tensor);
  if (!found || !view(tensor.ptr(), &seen) || seen.ndim == 0) return false;
  const int64_t columns = seen.shape[seen.ndim - 1];
  if (found->count == 0) return false;
  return found->is_double ? add_up(static_cast<const double*>(found->data), found->count / columns, columns, share)
                          : add_up(static_cast<const float*>(found->data), found->count / columns, columns, share);
}

}  // namespace metafast
