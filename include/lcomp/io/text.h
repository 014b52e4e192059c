#pragma once

#include <string>
#include <string_view>

namespace lcomp::io {

/// `text` with every line end ("\r\n", and "\r" alone) written as "\n", as languages do that read a file in
/// text mode. A text gives the same tokens wherever it was saved, and the same as in the tools that
/// perplexities are compared with.
std::string with_unix_line_ends(std::string_view text);

/// Throws `CorruptFile` with the file and the byte offset when `text`, the content of `file`, is not UTF-8.
void require_utf8(std::string_view text, const std::string& file);

}  // namespace lcomp::io
