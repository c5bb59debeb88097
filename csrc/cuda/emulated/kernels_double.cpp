// The device code in double, for the CPU.
#include "cuda/kernels_double.cu"
