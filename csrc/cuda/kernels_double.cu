// The device code in double.
#define METAFAST_ISA device_double
#include "cuda/kernels.cuh"

namespace metafast {

template <>
const DeviceKernels<double>& device_kernels<double>() {
  static const DeviceKernels<double> kernels = METAFAST_ISA::kernel_table<double>();
  return kernels;
}

}  // namespace metafast
