#pragma once

#include <c10/core/ScalarType.h>

#include <string>

namespace lcomp {

/// "float32", "bfloat16", "int64" ...: the names used in messages, reports and config.json.
std::string dtype_name(at::ScalarType type);

}  // namespace lcomp
