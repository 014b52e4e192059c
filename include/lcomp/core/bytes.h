#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lcomp {

/// Reads a size such as "4GB", "1.5 GiB", "512MiB" or "4096": a decimal number and a unit out of B, KB, MB,
/// GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024), in any case; without a unit it is bytes.
/// Fractions of a byte are cut off. Nothing when the text has another form or the size does not fit.
std::optional<int64_t> parse_bytes(std::string_view text);

/// A size for people, in powers of 1000 with three significant digits: "0 B", "999 B", "1.23 MB", "113 MB".
std::string format_bytes(int64_t bytes);

}  // namespace lcomp
