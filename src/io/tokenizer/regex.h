#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace lcomp::io::tok {

/// A half-open range of bytes.
struct Range {
  size_t begin = 0;
  size_t end = 0;
  bool empty() const { return begin == end; }
};

/// A compiled expression of a tokenizer.json (PCRE2 with Unicode classes). Immutable; copies share it;
/// searches may run in several threads at once.
class Regex {
 public:
  /// Throws `Unsupported` for constructs outside the common dialect (regex_dialect.h) and `CorruptFile` for
  /// an expression that does not compile; both name `where`.
  Regex(std::string_view oniguruma_pattern, const std::string& where);

  /// The matches in `text` (valid UTF-8) from left to right, without overlap. An empty match directly behind
  /// the previous match does not count.
  class Search {
   public:
    Search(const Regex& regex, std::string_view text);
    ~Search();
    Search(const Search&) = delete;
    Search& operator=(const Search&) = delete;

    /// Throws `Unsupported` when the expression backtracks beyond PCRE2's limits.
    std::optional<Range> next();

   private:
    std::optional<Range> match_from(size_t position);

    const Regex& regex_;
    std::string_view text_;
    void* match_data_;
    size_t position_ = 0;
    std::optional<size_t> last_end_;
  };

 private:
  std::shared_ptr<const void> code_;
  std::string pattern_;
  std::string where_;
};

}  // namespace lcomp::io::tok
