#pragma once

namespace lcomp {

/// Version of this library, as reports and journals record it. CMake reads it from here.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace lcomp
