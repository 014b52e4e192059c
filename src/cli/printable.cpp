#include "cli/printable.h"

#include <fmt/format.h>

namespace lcomp::cli {
namespace {

/// The code point whose UTF-8 begins at `at` if it is one of two or three bytes; else the byte. `size`: of
/// its bytes.
uint32_t code_point(std::string_view text, size_t at, size_t& size) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
  size = 1;
  if (byte(0) >> 5 == 0b110 && at + 1 < text.size()) {
    size = 2;
    return (byte(0) & 0x1F) << 6 | (byte(1) & 0x3F);
  }
  if (byte(0) >> 4 == 0b1110 && at + 2 < text.size()) {
    size = 3;
    return (byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  }
  return byte(0);
}

bool acts_on_terminals(uint32_t point, size_t size) {
  const auto within = [point](uint32_t first, uint32_t last) { return point >= first && point <= last; };
  if (size == 1) return point < 0x20 || point == 0x7F;
  return within(0x80, 0x9F) || within(0x200B, 0x200F) || within(0x2028, 0x202E) || within(0x2060, 0x206F) ||
         point == 0xFEFF;
}

}  // namespace

std::string printable(std::string_view text, bool keeps_lines) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0, size = 0; at < text.size(); at += size) {
    const uint32_t point = code_point(text, at, size);
    const bool is_kept = keeps_lines && (point == '\n' || point == '\t');
    if (acts_on_terminals(point, size) && !is_kept) {
      out += fmt::format("\\u{:04x}", point);
    } else {
      out += text.substr(at, size);
    }
  }
  return out;
}

}  // namespace lcomp::cli
