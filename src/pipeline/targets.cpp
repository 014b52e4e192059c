#include "lcomp/pipeline/targets.h"

#include <fmt/format.h>

#include "io/name_pattern.h"
#include "lcomp/core/error.h"
#include "pipeline/json_document.h"

namespace lcomp::pipeline {
namespace {

constexpr std::string_view kRegexPrefix = "re:";

/// The name and everything behind its dots: "a.b.c" -> "a.b.c", "b.c", "c".
std::vector<std::string_view> suffixes(std::string_view name) {
  std::vector<std::string_view> result = {name};
  for (size_t dot = name.find('.'); dot != std::string_view::npos; dot = name.find('.', dot + 1)) {
    result.push_back(name.substr(dot + 1));
  }
  return result;
}

/// Edits to `name` until the glob matches it; what `*` stands for costs nothing. 0 means a match.
size_t glob_distance(std::string_view glob, std::string_view name) {
  std::vector<size_t> row(name.size() + 1);
  for (size_t j = 0; j <= name.size(); ++j) row[j] = j;
  for (const char g : glob) {
    const std::vector<size_t> back = row;
    row[0] = g == '*' ? back[0] : back[0] + 1;
    for (size_t j = 1; j <= name.size(); ++j) {
      if (g == '*') {
        row[j] = std::min(back[j], row[j - 1]);
      } else {
        const size_t replace = back[j - 1] + (g == '?' || g == name[j - 1] ? 0 : 1);
        row[j] = std::min({replace, back[j] + 1, row[j - 1] + 1});
      }
    }
  }
  return row.back();
}

bool is_regex(std::string_view pattern) {
  return pattern.starts_with(kRegexPrefix);
}

/// A pattern ready to be matched many times.
class Matcher {
 public:
  /// Throws InvalidArgument.
  explicit Matcher(std::string_view pattern) : glob_(pattern) {
    if (is_regex(pattern)) regex_.emplace(std::string(pattern.substr(kRegexPrefix.size())));
  }

  bool operator()(std::string_view name) const {
    for (const std::string_view part : suffixes(name)) {
      const bool hit = regex_ ? regex_->matches(part) : glob_distance(glob_, part) == 0;
      if (hit) return true;
    }
    return false;
  }

 private:
  std::string glob_;
  std::optional<io::NamePattern> regex_;
};

/// "; the nearest name is "..."" when the glob is a typing error away from one, else an example of a name.
std::string nearest_hint(std::string_view pattern, const std::vector<std::string>& names) {
  if (names.empty()) return "; there are no operators";
  const std::string* best = nullptr;
  size_t best_distance = std::max<size_t>(1, pattern.size() / 3) + 1;
  for (const std::string& name : names) {
    if (is_regex(pattern)) break;
    for (const std::string_view part : suffixes(name)) {
      const size_t distance = glob_distance(pattern, part);
      if (distance >= best_distance) continue;
      best = &name;
      best_distance = distance;
    }
  }
  if (best != nullptr) return fmt::format("; the nearest name is \"{}\"", *best);
  return fmt::format("; names look like \"{}\"", names.front());
}

/// Reports bad patterns of one list, each once.
class PatternList {
 public:
  PatternList(const std::vector<std::string>& patterns, const std::string& pointer, Problems& problems) {
    for (size_t i = 0; i < patterns.size(); ++i) {
      try {
        entries_.push_back({patterns[i], child(pointer, i), Matcher(patterns[i])});
      } catch (const InvalidArgument& error) {
        problems.push_back(
            {child(pointer, i), fmt::format("must be a regular expression after \"re:\"; got \"{}\" ({})",
                                            patterns[i], error.what())});
      }
    }
  }

  bool matches(const std::string& name) const {
    return std::any_of(entries_.begin(), entries_.end(),
                       [&](const Entry& entry) { return entry.matcher(name); });
  }

  /// Every pattern must match one of `names`, which are called `what` in the error.
  void require_use(const std::vector<std::string>& names, std::string_view what, Problems& problems) const {
    for (const Entry& entry : entries_) {
      if (std::any_of(names.begin(), names.end(), entry.matcher)) continue;
      problems.push_back({entry.pointer, fmt::format("must match {}; \"{}\" matches none{}", what,
                                                     entry.pattern, nearest_hint(entry.pattern, names))});
    }
  }

 private:
  struct Entry {
    std::string pattern;
    std::string pointer;
    Matcher matcher;
  };
  std::vector<Entry> entries_;
};

OperatorSettings resolve_pass(const PassSpec& pass, const std::string& pointer,
                              const std::vector<std::string>& operators,
                              const std::vector<std::string>& untouchable, Problems& problems) {
  const size_t problems_before = problems.size();
  const PatternList targets(pass.targets, child(pointer, "targets"), problems);
  const PatternList ignore(pass.ignore, child(pointer, "ignore"), problems);
  std::vector<std::string> all = operators;
  all.insert(all.end(), untouchable.begin(), untouchable.end());
  targets.require_use(operators, "an operator", problems);
  ignore.require_use(all, "an operator", problems);

  OperatorSettings settings(operators.size());
  std::vector<std::string> chosen;
  for (size_t i = 0; i < operators.size(); ++i) {
    const bool targeted = pass.targets.empty() || targets.matches(operators[i]);
    if (!targeted || ignore.matches(operators[i])) continue;
    settings[i] = pass.options;
    chosen.push_back(operators[i]);
  }
  if (chosen.empty()) {
    // Bad patterns explain themselves; without any, targets and ignore cancel out.
    if (problems.size() == problems_before) {
      problems.push_back({pointer, "a pass must have an operator to work on; \"ignore\" leaves none"});
    }
    return settings;
  }

  for (size_t o = 0; o < pass.overrides.size(); ++o) {
    const std::string place = child(child(child(pointer, "overrides"), o), "match");
    const PatternList match(pass.overrides[o].match, place, problems);
    match.require_use(chosen, "an operator of this pass", problems);
    for (size_t i = 0; i < operators.size(); ++i) {
      if (settings[i] != nullptr && match.matches(operators[i])) settings[i] = pass.overrides[o].options;
    }
  }
  return settings;
}

}  // namespace

bool matches(std::string_view pattern, const std::string& operator_name) {
  try {
    return Matcher(pattern)(operator_name);
  } catch (const InvalidArgument& error) {
    throw ConfigError("matches",
                      fmt::format("the pattern must be a regular expression after \"re:\"; got \"{}\" ({})",
                                  pattern, error.what()));
  }
}

std::vector<OperatorSettings> resolve_targets(const Job& job, const std::string& where,
                                              const std::vector<std::string>& operators,
                                              const std::vector<std::string>& untouchable) {
  Problems problems;
  std::vector<OperatorSettings> result;
  for (size_t p = 0; p < job.passes.size(); ++p) {
    result.push_back(resolve_pass(job.passes[p], child("/passes", p), operators, untouchable, problems));
  }
  throw_problems(where, problems);
  return result;
}

}  // namespace lcomp::pipeline
