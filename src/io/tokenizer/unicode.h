#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// Code points, their properties and normal forms. Every function takes valid UTF-8 unless it says otherwise.
namespace lcomp::io::tok {

/// The code point that begins at `position`, which moves behind it.
char32_t next_code_point(std::string_view text, size_t& position);

/// The code point that ends before `position` (> 0), which moves to its first byte.
char32_t previous_code_point(std::string_view text, size_t& position);

/// Number of code points.
int64_t count_code_points(std::string_view text);

/// Bytes of the code point that begins with `lead`.
size_t utf8_length(unsigned char lead);

void append_utf8(std::string& out, char32_t code_point);

/// Any bytes as UTF-8, with U+FFFD for each maximal ill-formed part (Unicode 15, section 3.9, practice of
/// table 3-8; the same as WHATWG decoding and Rust's `from_utf8_lossy`).
std::string lossy_utf8(std::string_view bytes);

/// The property White_Space: 25 code points.
bool is_white_space(char32_t code_point);
/// General categories Nd, Nl, No.
bool is_number(char32_t code_point);
/// General categories Mn, Mc, Me.
bool is_mark(char32_t code_point);
/// General category Mn.
bool is_nonspacing_mark(char32_t code_point);
/// General categories Cc, Cf, Co (surrogates do not occur in UTF-8).
bool is_control(char32_t code_point);
/// ASCII punctuation (which includes `$+<=>^`|~`) or general category P*.
bool is_punctuation(char32_t code_point);
/// `\w` of Unicode Technical Standard 18, annex C: Alphabetic, marks, decimal numbers, connector punctuation,
/// join controls.
bool is_word(char32_t code_point);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string to_normal_form(std::string_view text, NormalForm form);

/// Each code point in lower case on its own, without regard to its neighbours (so a final capital sigma gives
/// the medial small one).
std::string to_lower(std::string_view text);

}  // namespace lcomp::io::tok
