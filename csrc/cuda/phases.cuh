// The device code of every phase. To add a primitive: its header here.
#pragma once

#include "cuda/engine.cuh"
#include "cuda/primitives/activation.cuh"
#include "cuda/primitives/batch_norm.cuh"
#include "cuda/primitives/batch_norm_relu_pool.cuh"
#include "cuda/primitives/conv2d.cuh"
#include "cuda/primitives/conv2d_staged.cuh"
#include "cuda/primitives/dropout.cuh"
#include "cuda/primitives/embedding.cuh"
#include "cuda/primitives/grouped_conv2d.cuh"
#include "cuda/primitives/linear.cuh"
#include "cuda/primitives/pair.cuh"
#include "cuda/primitives/pooling.cuh"
#include "cuda/primitives/shape_and_sum.cuh"
#include "cuda/primitives/sparse_map.cuh"
#include "cuda/primitives/staged_tf32.cuh"
