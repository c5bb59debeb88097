// The device code of every phase. To add a primitive: its header here.
#pragma once

#include "engine.cuh"
#include "primitives/activation.cuh"
#include "primitives/linear.cuh"
