// Names the instruction set a translation unit is compiled for. Every function that may be inlined lives in the
// namespace of its instruction set, so that the linker never substitutes one compiled for a newer processor.
#pragma once

#ifndef METAFAST_ISA
#define METAFAST_ISA baseline
#endif

#if defined(__AVX512F__)
#define METAFAST_VECTOR_BYTES 64
#elif defined(__AVX__)
#define METAFAST_VECTOR_BYTES 32
#else
#define METAFAST_VECTOR_BYTES 16
#endif

// For large functions with several callers: compiled once, not once in each caller.
#define METAFAST_OUTLINED __attribute__((noinline))

// For a function that is one loop over small functions: those become part of the loop, however many there are. It is not
// part of its callers, who choose among dozens.
#if defined(__CUDACC__)
#define METAFAST_ONE_LOOP MF_HD __noinline__
#else
#define METAFAST_ONE_LOOP __attribute__((noinline, flatten))
#endif
