#pragma once

#include <string>

#include "io/json_util.h"

namespace lcomp::io::tok {

/// When Metaspace puts its mark in front of a piece that does not begin with it.
enum class PrependScheme { kAlways, kFirst, kNever };

/// What the Metaspace pre-tokenizer and decoder have in common.
struct Metaspace {
  std::string replacement;  ///< one code point, U+2581 in practice
  PrependScheme scheme = PrependScheme::kAlways;
  bool split = true;

  /// Older files have `add_prefix_space` (false: never) in place of `prepend_scheme`.
  static Metaspace from_json(const JsonView& json);
};

}  // namespace lcomp::io::tok
