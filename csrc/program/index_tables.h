// Index tables of convolutions and windows of poolings, which the batch keeps and the node points to.
#pragma once

#include "program/program.h"

namespace metafast {

void make_conv_tables(Program::Plan& plan, Node& node);
void make_pool_windows(Program::Plan& plan, Node& node);

}  // namespace metafast
