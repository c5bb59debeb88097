// The tables of static linear maps, in the layout of a plan.
#pragma once

#include "program/program.h"

namespace metafast {

void make_sparse_tables(Program::Plan& plan, Node& node, const NodeDescription& description, bool for_device);

}  // namespace metafast
