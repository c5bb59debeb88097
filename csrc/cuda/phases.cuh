// The device code of every phase. To add a primitive: its header here.
#pragma once

#include "engine.cuh"
#include "primitives/activation.cuh"
#include "primitives/batch_norm.cuh"
#include "primitives/batch_norm_relu_pool.cuh"
#include "primitives/conv2d.cuh"
#include "primitives/conv2d_staged.cuh"
#include "primitives/linear.cuh"
#include "primitives/pooling.cuh"
#include "primitives/shape_and_sum.cuh"
#include "primitives/staged_tf32.cuh"
