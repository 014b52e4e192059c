#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lcomp {

/// Number of single-character edits (insert, delete, replace, swap of neighbours) between two names, letters
/// compared without case (optimal string alignment distance).
size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate that `name` was most likely meant to be, or "" when none is near: at most a third of the
/// longer name may differ. The first of equally near ones wins.
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// The end of an error about an unknown name: ` (did you mean "bits"?)`, or "" when no candidate is near.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace lcomp
