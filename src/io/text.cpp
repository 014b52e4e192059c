#include "lcomp/io/text.h"

#include "io/json_util.h"
#include "lcomp/core/error.h"

namespace lcomp::io {

std::string with_unix_line_ends(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      out.push_back(text[i]);
      continue;
    }
    out.push_back('\n');
    if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
  }
  return out;
}

void require_utf8(std::string_view text, const std::string& file) {
  const auto bad = find_invalid_utf8(text);
  if (!bad) return;
  throw CorruptFile(file, fmt::format("the text must be valid UTF-8; byte {} (0x{:02X}) is not", *bad,
                                      static_cast<unsigned char>(text[*bad])));
}

}  // namespace lcomp::io
