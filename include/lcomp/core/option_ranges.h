#pragma once

#include <functional>
#include <string_view>

#include "lcomp/core/options.h"

namespace lcomp {

/// Checks every number that `visit` declares against its range; for options that come from code, not from a
/// job. Throws InvalidArgument("[where] bits must be in [2, 8]; received 9").
void check_ranges(const std::function<void(FieldVisitor&)>& visit, std::string_view where);

}  // namespace lcomp
