#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/components.h"
#include "io/tokenizer/metaspace.h"
#include "io/tokenizer/pattern.h"
#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

using Tokens = std::vector<std::string>;

Decoder per_token(std::function<std::string(const std::string&)> rewrite) {
  return [rewrite = std::move(rewrite)](Tokens tokens) {
    for (std::string& token : tokens) token = rewrite(token);
    return tokens;
  };
}

/// The bytes that a token's symbols stand for; a token with a character outside the alphabet (an added token)
/// stands for its own UTF-8.
void append_token_bytes(std::string& bytes, const std::string& token) {
  const size_t size_before = bytes.size();
  for (size_t position = 0; position < token.size();) {
    const auto byte = byte_of_symbol(next_code_point(token, position));
    if (!byte) {
      bytes.resize(size_before);
      bytes += token;
      return;
    }
    bytes.push_back(static_cast<char>(*byte));
  }
}

std::optional<int> hex_digit(char c) {
  if ('0' <= c && c <= '9') return c - '0';
  if ('a' <= c && c <= 'f') return c - 'a' + 10;
  if ('A' <= c && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

/// The byte of a token `<0xHH>`.
std::optional<char> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with(">")) return std::nullopt;
  const auto high = hex_digit(token[3]);
  const auto low = hex_digit(token[4]);
  if (!high || !low) return std::nullopt;
  return static_cast<char>(*high * 16 + *low);
}

/// `token` without up to `start` leading and `stop` trailing copies of `content`.
std::string strip(std::string_view token, const std::string& content, int64_t start, int64_t stop) {
  for (int64_t i = 0; i < start && token.starts_with(content); ++i) token.remove_prefix(content.size());
  for (int64_t i = 0; i < stop && token.ends_with(content); ++i) token.remove_suffix(content.size());
  return std::string(token);
}

}  // namespace

Decoder build_decoder_sequence(const JsonView& json) {
  std::vector<Decoder> steps;
  for (const JsonView& step : json.at("decoders").elements()) steps.push_back(build_decoder(step));
  return [steps](Tokens tokens) {
    for (const Decoder& step : steps) tokens = step(std::move(tokens));
    return tokens;
  };
}

Decoder build_byte_level_decoder(const JsonView&) {
  return [](const Tokens& tokens) {
    std::string bytes;
    for (const std::string& token : tokens) append_token_bytes(bytes, token);
    return Tokens{lossy_utf8(bytes)};
  };
}

Decoder build_replace_decoder(const JsonView& json) {
  const Pattern pattern = Pattern::from_json(json.at("pattern"));
  const std::string content = json.at("content").text();
  return per_token([pattern, content](const std::string& token) { return pattern.replaced(token, content); });
}

Decoder build_fuse(const JsonView&) {
  return [](const Tokens& tokens) {
    std::string text;
    for (const std::string& token : tokens) text += token;
    return Tokens{text};
  };
}

Decoder build_strip_decoder(const JsonView& json) {
  const std::string content = json.at("content").text();
  if (content.empty() || content.size() != utf8_length(static_cast<unsigned char>(content[0]))) {
    json.at("content").fail("must be one character; it is " + quote_name(content));
  }
  const int64_t start = json.at("start").integer(0);
  const int64_t stop = json.at("stop").integer(0);
  return per_token([=](const std::string& token) { return strip(token, content, start, stop); });
}

Decoder build_byte_fallback(const JsonView&) {
  return [](const Tokens& tokens) {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (!find_invalid_utf8(bytes)) {
        if (!bytes.empty()) out.push_back(bytes);
      } else {
        out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");  // U+FFFD for every byte of the run
      }
      bytes.clear();
    };
    for (const std::string& token : tokens) {
      if (const auto byte = byte_of_token(token)) {
        bytes.push_back(*byte);
      } else {
        flush();
        out.push_back(token);
      }
    }
    flush();
    return out;
  };
}

Decoder build_metaspace_decoder(const JsonView& json) {
  const Metaspace metaspace = Metaspace::from_json(json);
  const Pattern mark = Pattern::literal(metaspace.replacement);
  return [metaspace, mark](Tokens tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      // Every mark of the first token goes, not only the one that the pre-tokenizer may have prepended.
      const bool dropped = i == 0 && metaspace.scheme != PrependScheme::kNever;
      tokens[i] = mark.replaced(tokens[i], dropped ? "" : " ");
    }
    return tokens;
  };
}

Decoder build_bpe_decoder(const JsonView& json) {
  const Pattern suffix = Pattern::literal(json.at("suffix").text());
  return [suffix](Tokens tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = suffix.replaced(tokens[i], i + 1 == tokens.size() ? "" : " ");
    }
    return tokens;
  };
}

}  // namespace lcomp::io::tok
