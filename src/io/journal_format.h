#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/io/journal.h"

namespace lcomp::io {

/// The lines of a journal, each with its newline.
std::string journal_head_line(const std::string& job_key);
std::string journal_line(const JournalRecord& record);

/// The part of a journal that can be believed.
struct JournalContent {
  std::optional<std::string> job_key;  ///< nothing when already the first line is wrong
  std::vector<JournalRecord> records;
  size_t valid_bytes = 0;  ///< length of the prefix that these come from
  std::string problem;     ///< what is wrong behind the prefix; empty when it is the whole text
};

/// Never throws for its content.
JournalContent parse_journal(std::string_view text);

}  // namespace lcomp::io
