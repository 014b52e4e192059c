#pragma once

#include <string>
#include <string_view>

namespace lcomp::cli {

/// The text as it may go to a terminal: what would move the cursor, colour, reorder or hide text there
/// (control characters, bidirectional overrides) is written as \uXXXX. Names in model files can hold such
/// things. `keeps_lines` leaves line ends and tabs as they are.
std::string printable(std::string_view text, bool keeps_lines = false);

}  // namespace lcomp::cli
