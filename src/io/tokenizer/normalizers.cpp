#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/components.h"
#include "io/tokenizer/pattern.h"
#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

Normalizer normal_form(NormalForm form) {
  return [form](NormalizedText& piece) { piece.text = to_normal_form(piece.text, form); };
}

size_t leading_white_space(std::string_view text) {
  size_t end = 0;
  while (end < text.size()) {
    size_t next = end;
    if (!is_white_space(next_code_point(text, next))) break;
    end = next;
  }
  return end;
}

size_t trailing_white_space(std::string_view text) {
  size_t begin = text.size();
  while (begin > 0) {
    size_t previous = begin;
    if (!is_white_space(previous_code_point(text, previous))) break;
    begin = previous;
  }
  return text.size() - begin;
}

/// Replaced text counts as coming from the last character of its match; so a piece whose first characters
/// were replaced still begins at the start of the input only if the match was a single character.
bool keeps_start(std::string_view text, Range first_match, const std::string& content) {
  if (first_match.begin > 0 || first_match.empty()) return true;
  return !content.empty() && first_match.end == utf8_length(static_cast<unsigned char>(text[0]));
}

}  // namespace

Normalizer build_normalizer_sequence(const JsonView& json) {
  std::vector<Normalizer> steps;
  for (const JsonView& step : json.at("normalizers").elements()) steps.push_back(build_normalizer(step));
  return [steps](NormalizedText& piece) {
    for (const Normalizer& step : steps) step(piece);
  };
}

Normalizer build_nfc(const JsonView&) {
  return normal_form(NormalForm::kNfc);
}
Normalizer build_nfd(const JsonView&) {
  return normal_form(NormalForm::kNfd);
}
Normalizer build_nfkc(const JsonView&) {
  return normal_form(NormalForm::kNfkc);
}
Normalizer build_nfkd(const JsonView&) {
  return normal_form(NormalForm::kNfkd);
}

Normalizer build_lowercase(const JsonView&) {
  return [](NormalizedText& piece) { piece.text = to_lower(piece.text); };
}

Normalizer build_strip(const JsonView& json) {
  const bool left = json.at("strip_left").boolean();
  const bool right = json.at("strip_right").boolean();
  return [left, right](NormalizedText& piece) {
    if (right) piece.text.resize(piece.text.size() - trailing_white_space(piece.text));
    const size_t cut = left ? leading_white_space(piece.text) : 0;
    piece.text.erase(0, cut);
    piece.at_start = piece.at_start && cut == 0;
  };
}

Normalizer build_strip_accents(const JsonView&) {
  return [](NormalizedText& piece) {
    std::string kept;
    for (size_t position = 0; position < piece.text.size();) {
      const size_t begin = position;
      if (!is_mark(next_code_point(piece.text, position))) {
        kept.append(piece.text, begin, position - begin);
      } else if (begin == 0) {
        piece.at_start = false;
      }
    }
    piece.text = std::move(kept);
  };
}

Normalizer build_replace(const JsonView& json) {
  const Pattern pattern = Pattern::from_json(json.at("pattern"));
  const std::string content = json.at("content").text();
  return [pattern, content](NormalizedText& piece) {
    std::string replaced;
    replaced.reserve(piece.text.size());
    pattern.for_each_span(piece.text, [&](Span span) {
      if (!span.match) {
        replaced.append(piece.text, span.range.begin, span.range.end - span.range.begin);
        return;
      }
      replaced += content;
      piece.at_start = piece.at_start && keeps_start(piece.text, span.range, content);
    });
    piece.text = std::move(replaced);
  };
}

Normalizer build_prepend(const JsonView& json) {
  const std::string prefix = json.at("prepend").text();
  return [prefix](NormalizedText& piece) {
    if (!piece.text.empty()) piece.text.insert(0, prefix);
  };
}

Normalizer build_byte_level_normalizer(const JsonView&) {
  return [](NormalizedText& piece) {
    std::string symbols;
    append_byte_symbols(symbols, piece.text);
    piece.text = std::move(symbols);
  };
}

}  // namespace lcomp::io::tok
