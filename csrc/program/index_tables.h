// Index tables of convolutions and windows of poolings, which the batch keeps and the node points to.
#pragma once

#include "program/program.h"

namespace metafast {

// Of a convolution from images of the shape of `large` to those of `small`: the sizes of its buffers; its tables too, which
// are the same for each of the groups.
void size_conv_buffers(Node& node, const Value& large);
void make_conv_tables(Program::Plan& plan, Node& node, const Value& large, const Value& small, int64_t groups);
void make_pool_windows(Program::Plan& plan, Node& node);

}  // namespace metafast
