#include "io/tokenizer/components.h"
#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

constexpr char32_t kReplacement = 0xFFFD;

/// Each code point of the piece through `rewrite(code point, out)`, which may drop it.
template <class Rewrite>
void rewrite_code_points(NormalizedText& piece, const Rewrite& rewrite) {
  std::string out;
  out.reserve(piece.text.size());
  for (size_t position = 0; position < piece.text.size();) {
    const bool first = position == 0;
    rewrite(next_code_point(piece.text, position), out);
    if (first && out.empty()) piece.at_start = false;
  }
  piece.text = std::move(out);
}

void clean(char32_t c, std::string& out) {
  const bool blank = c == '\t' || c == '\n' || c == '\r';
  if (!blank && (c == 0 || c == kReplacement || is_control(c))) return;
  append_utf8(out, is_white_space(c) ? U' ' : c);
}

/// The blocks of ideographs that BERT was trained with; each is a word of its own.
bool is_ideograph(char32_t c) {
  constexpr std::pair<char32_t, char32_t> kBlocks[] = {
      {0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
      {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  return std::any_of(std::begin(kBlocks), std::end(kBlocks),
                     [c](const auto& block) { return block.first <= c && c <= block.second; });
}

void set_apart(char32_t c, std::string& out) {
  const bool apart = is_ideograph(c);
  if (apart) out += ' ';
  append_utf8(out, c);
  if (apart) out += ' ';
}

void without_accent(char32_t c, std::string& out) {
  if (!is_nonspacing_mark(c)) append_utf8(out, c);
}

}  // namespace

Normalizer build_bert_normalizer(const JsonView& json) {
  const bool clean_text = json.at("clean_text").boolean();
  const bool handle_chinese_chars = json.at("handle_chinese_chars").boolean();
  const bool lowercase = json.at("lowercase").boolean();
  const bool strip_accents = json.boolean_or("strip_accents", lowercase);
  return [=](NormalizedText& piece) {
    if (clean_text) rewrite_code_points(piece, clean);
    if (handle_chinese_chars) rewrite_code_points(piece, set_apart);
    if (strip_accents) {
      piece.text = to_normal_form(piece.text, NormalForm::kNfd);
      rewrite_code_points(piece, without_accent);
    }
    if (lowercase) piece.text = to_lower(piece.text);
  };
}

}  // namespace lcomp::io::tok
