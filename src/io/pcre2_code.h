#pragma once

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>

/// PCRE2 in the types of C++. Only for sources: its headers want the width of a character before them.
namespace lcomp::io {

inline PCRE2_SPTR pcre2_bytes(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

inline std::string pcre2_message(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// Frees the code with the last copy.
inline std::shared_ptr<const void> pcre2_owned(pcre2_code* code) {
  return {code, [](const void* p) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(p))); }};
}

inline const pcre2_code* pcre2_code_of(const std::shared_ptr<const void>& owned) {
  return static_cast<const pcre2_code*>(owned.get());
}

}  // namespace lcomp::io
