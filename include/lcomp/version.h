#pragma once

namespace lcomp {

/// Version of this library, as reports and journals record it. Kept equal to the project version in CMakeLists.txt
/// (checked when configuring).
inline constexpr const char* kVersion = "0.1.0";

}  // namespace lcomp
