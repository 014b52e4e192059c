// Any bytes as a journal: never an exception, and what is believed reads the same when read again.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "io/journal_format.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lcomp::io;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const JournalContent content = parse_journal(text);
  if (content.valid_bytes > size || content.problem.empty() != (content.valid_bytes == size)) std::abort();
  const JournalContent again = parse_journal(text.substr(0, content.valid_bytes));
  if (!again.problem.empty() || again.records != content.records) std::abort();
  return 0;
}
