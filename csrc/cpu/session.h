// Calls done by the CPU.
#pragma once

#include "engine/call.h"

namespace metafast {

std::unique_ptr<Session> make_cpu_session(std::shared_ptr<const Program> program, Call call, bool is_double);

}  // namespace metafast
