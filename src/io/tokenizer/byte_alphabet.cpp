#include "io/tokenizer/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace lcomp::io::tok {
namespace {

constexpr bool stands_for_itself(int byte) {
  return (0x21 <= byte && byte <= 0x7E) || (0xA1 <= byte && byte <= 0xAC) || byte >= 0xAE;
}

constexpr int kFirstSubstitute = 0x100;
constexpr int kSymbolEnd = kFirstSubstitute + 68;

struct Symbol {
  std::array<char, 2> utf8{};
  uint8_t length = 0;
};

struct Alphabet {
  std::array<Symbol, 256> symbol_of_byte{};
  std::array<int16_t, kSymbolEnd> byte_of_symbol{};  // -1: not a symbol
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte_of_symbol.fill(-1);
  int substitute = kFirstSubstitute;
  for (int byte = 0; byte < 256; ++byte) {
    const int code_point = stands_for_itself(byte) ? byte : substitute++;
    alphabet.byte_of_symbol[static_cast<size_t>(code_point)] = static_cast<int16_t>(byte);
    Symbol& symbol = alphabet.symbol_of_byte[static_cast<size_t>(byte)];
    if (code_point < 0x80) {
      symbol = {{static_cast<char>(code_point), 0}, 1};
    } else {
      symbol = {{static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))},
                2};
    }
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::string_view symbol_of_byte(unsigned char byte) {
  const Symbol& symbol = kAlphabet.symbol_of_byte[byte];
  return {symbol.utf8.data(), symbol.length};
}

std::optional<unsigned char> byte_of_symbol(char32_t symbol) {
  if (symbol >= kSymbolEnd || kAlphabet.byte_of_symbol[symbol] < 0) return std::nullopt;
  return static_cast<unsigned char>(kAlphabet.byte_of_symbol[symbol]);
}

void append_byte_symbols(std::string& out, std::string_view bytes) {
  for (const char byte : bytes) out += symbol_of_byte(static_cast<unsigned char>(byte));
}

}  // namespace lcomp::io::tok
