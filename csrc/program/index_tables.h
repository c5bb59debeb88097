// Index tables of convolutions and windows of poolings, which the batch keeps and the step points to.
#pragma once

#include "program/program.h"

namespace metafast {

void make_conv_tables(Program::Batch& batch, Step& step);
void make_pool_windows(Program::Batch& batch, Step& step);

}  // namespace metafast
