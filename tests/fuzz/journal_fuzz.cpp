// Any bytes as a journal: never an exception, and what is believed reads the same when read again.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "io/journal_format.h"
#include "lcomp/io/hash.h"
#include "mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lcomp::io;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const JournalContent content = parse_journal(text);
  if (content.valid_bytes > size || content.problem.empty() != (content.valid_bytes == size)) std::abort();
  const JournalContent again = parse_journal(text.substr(0, content.valid_bytes));
  if (!again.problem.empty() || again.records != content.records) std::abort();
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  return lcomp::fuzz::mutate_and_repair(data, size, most, seed, [](std::string& text) {
    const std::string_view before_hash = R"({"hash":")", before_record = R"(","record":)";
    constexpr size_t kDigits = 32;
    for (size_t line = 0; line < text.size();) {
      const size_t end = std::min(text.find('\n', line), text.size());
      const size_t hash = line + before_hash.size(), record = hash + kDigits + before_record.size();
      if (record < end && text[end - 1] == '}')
        text.replace(hash, kDigits, lcomp::io::hash_of(text.substr(record, end - 1 - record)));
      line = end + 1;
    }
  });
}
