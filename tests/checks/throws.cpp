// Every error of the library is provoked by a test that looks at its text.
//
//   lcomp_throws_check ROOT
//
// Finds each `throw Kind(...)` in src and include, and the pieces of its message that stand between
// placeholders. It is covered when a string in the tests contains a piece, or is part of one. Messages
// without a piece of their own (text of another error) are counted with where they come from. What no test
// can reach is listed below, with the reason.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

/// Shorter texts stand in other places too.
constexpr size_t kShortestPiece = 8;
constexpr size_t kShortestPart = 10;

/// Pieces of messages that no test provokes.
const std::set<std::string_view> kUnreachable = {
    // Bugs in lcomp itself.
    "the weights must be quantized before their inputs",
    "a block must have queries",
    "the activation must be one of its kinds",
    "the written checkpoint must equal what was read;",
    // Only LAPACK can.
    "the iteration must converge; LAPACK gave up with",
    "eigenvalues must be found;",
};

std::string contents(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

Strings sources(const fs::path& root, const Strings& folders) {
  Strings files;
  for (const std::string& folder : folders) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const fs::path extension = entry.path().extension();
      if (extension == ".cpp" || extension == ".h") files.push_back(entry.path().string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// Reads C++ text token by token, as far as strings, characters and comments go.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool done() const { return at_ >= text_.size(); }
  size_t at() const { return at_; }

  /// Moves over one token; true, with its value, when it is a string.
  bool next(std::string& value) {
    if (text_.substr(at_, 2) == "//") {
      at_ = std::min(text_.find('\n', at_), text_.size());
      return false;
    }
    const char quote = text_[at_];
    if (quote != '"' && (quote != '\'' || (at_ > 0 && std::isalnum(text_[at_ - 1]) != 0))) {
      ++at_;
      return false;
    }
    value.clear();
    for (++at_; at_ < text_.size() && text_[at_] != quote; ++at_) {
      if (text_[at_] == '\\') ++at_;
      if (at_ < text_.size()) value += text_[at_];
    }
    ++at_;
    return quote == '"';
  }

  void skip_space() {
    while (!done() && std::isspace(static_cast<unsigned char>(text_[at_])) != 0) ++at_;
  }
  char peek() const { return done() ? '\0' : text_[at_]; }

 private:
  std::string_view text_;
  size_t at_ = 0;
};

/// The strings of C++ text, those that follow each other joined.
Strings strings_of(std::string_view text) {
  Strings found;
  Scanner scanner(text);
  bool joins = false;
  for (std::string value; !scanner.done();) {
    if (!scanner.next(value)) {
      joins = false;
      continue;
    }
    if (joins) {
      found.back() += value;
    } else {
      found.push_back(value);
    }
    scanner.skip_space();
    joins = scanner.peek() == '"';
  }
  return found;
}

std::string trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(' ');
  if (first == std::string_view::npos) return {};
  return std::string(text.substr(first, text.find_last_not_of(' ') - first + 1));
}

/// What stands between the placeholders of a format.
Strings pieces_of(const std::string& format) {
  Strings pieces;
  for (size_t begin = 0; begin <= format.size();) {
    const size_t open = std::min(format.find('{', begin), format.size());
    std::string piece = trimmed(std::string_view(format).substr(begin, open - begin));
    if (piece.size() >= kShortestPiece && piece.find(' ') != std::string::npos)
      pieces.push_back(std::move(piece));
    const size_t close = format.find('}', open);
    if (close == std::string::npos) break;
    begin = close + 1;
  }
  return pieces;
}

struct Throw {
  std::string file;
  size_t line = 0;
  Strings pieces;
};

/// What stands in the brackets that open at `begin`.
std::string_view in_brackets(std::string_view text, size_t begin) {
  Scanner scanner(text.substr(begin));
  int depth = 0;
  for (std::string unused; !scanner.done();) {
    const char c = scanner.peek();
    scanner.next(unused);
    depth += c == '(' ? 1 : c == ')' ? -1 : 0;
    if (depth == 0) break;
  }
  return text.substr(begin, scanner.at());
}

std::vector<Throw> throws_in(const fs::path& root, const std::string& file) {
  constexpr std::string_view kThrow = "throw ";
  std::vector<Throw> found;
  const std::string text = contents(file);
  for (size_t at = text.find(kThrow); at != std::string::npos; at = text.find(kThrow, at + 1)) {
    const size_t line_begin = text.rfind('\n', at) + 1;
    if (text.substr(line_begin, at - line_begin).find("//") != std::string::npos) continue;
    const size_t open = text.find_first_of("(;", at);
    if (open == std::string::npos || text[open] == ';') continue;
    Throw one{
        fs::relative(file, root).string(),
        static_cast<size_t>(std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n')) +
            1,
        {}};
    for (const std::string& literal : strings_of(in_brackets(text, open))) {
      for (std::string& piece : pieces_of(literal)) one.pieces.push_back(std::move(piece));
    }
    found.push_back(std::move(one));
  }
  return found;
}

/// A test may look for a part, of words and not much less than the half: single words stand in many strings
/// that look for no error.
bool covers(const std::string& test, const std::string& piece) {
  return test.find(piece) != std::string::npos ||
         (test.size() >= kShortestPart && test.find(' ') != std::string::npos &&
          5 * test.size() >= 2 * piece.size() && piece.find(test) != std::string::npos);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: lcomp_throws_check ROOT\n", stderr);
    return 2;
  }
  const fs::path root = argv[1];
  Strings tests;
  for (const std::string& file : sources(root, {"tests"})) {
    if (fs::path(file).filename() == "throws.cpp") continue;
    for (std::string& text : strings_of(contents(file))) tests.push_back(trimmed(text));
  }
  size_t covered = 0, indirect = 0, unreachable = 0, missing = 0;
  for (const std::string& file : sources(root, {"src", "include"})) {
    for (const Throw& one : throws_in(root, file)) {
      const bool is_covered =
          std::any_of(one.pieces.begin(), one.pieces.end(), [&](const std::string& piece) {
            return std::any_of(tests.begin(), tests.end(),
                               [&](const auto& test) { return covers(test, piece); });
          });
      const bool is_unreachable =
          std::any_of(one.pieces.begin(), one.pieces.end(),
                      [](const std::string& piece) { return kUnreachable.contains(piece); });
      if (one.pieces.empty()) {
        ++indirect;
      } else if (is_covered) {
        ++covered;
      } else if (is_unreachable) {
        ++unreachable;
      } else {
        ++missing;
        std::printf("%s:%zu: no test looks for \"%s\"\n", one.file.c_str(), one.line, one.pieces[0].c_str());
      }
    }
  }
  std::printf(
      "%zu errors are covered, %zu pass on the text of others, %zu cannot be provoked, %zu are not covered\n",
      covered, indirect, unreachable, missing);
  return missing == 0 && covered > 0 ? 0 : 1;
}
