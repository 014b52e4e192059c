#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace lcomp::io {

/// A regular expression over names of operators, from a job or the config of a model: Perl's syntax (PCRE2).
/// Immutable; copies share it, and several threads may match at once. What an expression can cost is bounded:
/// files of strangers hold them.
class NamePattern {
 public:
  /// Throws InvalidArgument, with PCRE2's reason, for an expression that does not compile.
  explicit NamePattern(const std::string& expression);

  /// Both throw Unsupported for an expression that backtracks beyond the bound.
  bool matches(std::string_view name) const;           ///< all of it
  bool matches_start_of(std::string_view name) const;  ///< a part of it that begins at its beginning

 private:
  bool run(std::string_view name, unsigned options) const;

  std::string expression_;
  std::shared_ptr<const void> code_;
};

}  // namespace lcomp::io
