#pragma once

#include <optional>
#include <string>
#include <string_view>

/// GPT-2's bijection between the 256 bytes and 256 printable code points, in which byte-level vocabularies
/// are written: 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand for themselves, the other 68 bytes in ascending
/// order are U+0100, U+0101, ... (Radford et al. 2019, `bytes_to_unicode` of the released encoder.)
namespace lcomp::io::tok {

/// The symbol of a byte, in UTF-8.
std::string_view symbol_of_byte(unsigned char byte);

/// The byte of a symbol, or nothing for a code point outside the alphabet.
std::optional<unsigned char> byte_of_symbol(char32_t symbol);

void append_byte_symbols(std::string& out, std::string_view bytes);

}  // namespace lcomp::io::tok
