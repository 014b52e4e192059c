#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "io/json_util.h"

namespace lcomp::io::tok {

/// Lets string-keyed tables be searched by `string_view` without a copy.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
template <class V>
using StringMap = std::unordered_map<std::string, V, StringHash, std::equal_to<>>;

/// Ids of a tokenizer.json are 32-bit unsigned.
inline constexpr int64_t kMaxId = UINT32_MAX;

/// A bijection between tokens and ids. Ids need not be contiguous.
class Vocabulary {
 public:
  /// `{token: id, ...}`. Throws `CorruptFile` for two tokens with one id.
  static Vocabulary from_json(const JsonView& json);

  /// False, and no change, when the token or the id is taken.
  bool add(std::string_view token, int64_t id);

  int64_t size() const { return static_cast<int64_t>(ids_.size()); }
  std::optional<int64_t> id(std::string_view token) const;
  /// Null for an unknown id; valid as long as the vocabulary.
  const std::string* token(int64_t id) const;

 private:
  StringMap<int64_t> ids_;
  std::unordered_map<int64_t, const std::string*> tokens_;  // keys of ids_, whose addresses are stable
};

}  // namespace lcomp::io::tok
