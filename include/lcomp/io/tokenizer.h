#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lcomp::io {

/// Token ids with, for each, the number of the segment it belongs to (BERT's `token_type_ids`).
struct Encoding {
  std::vector<int64_t> ids;
  std::vector<int64_t> type_ids;  ///< as long as `ids`
};

/// The special tokens that stand in front of and behind one text.
struct SpecialTokens {
  std::vector<int64_t> front;
  std::vector<int64_t> back;

  int64_t count() const { return static_cast<int64_t>(front.size() + back.size()); }
  std::vector<int64_t> around(const std::vector<int64_t>& ids) const;
};

/// The tokenizer of a Hugging Face `tokenizer.json`, giving the ids that the `tokenizers` library gives.
///
/// The way of a text: added tokens are cut out of it, the pieces between them are normalized, cut into words
/// (pre-tokenized), the model (byte-pair encoding) turns each word into ids, and the post-processor adds
/// special tokens when asked to. Special tokens that are written out in the text are recognised.
///
/// The `truncation` and `padding` settings of the file are not applied, as in the default call of Hugging
/// Face transformers: cutting token streams into windows is the caller's business.
///
/// A tokenizer is immutable and cheap to copy (copies share their tables); all methods may be called from
/// several threads at once.
class Tokenizer {
 public:
  /// Throws `CorruptFile` when the file cannot be read or breaks the rules of the format (with the JSON
  /// pointer), and `Unsupported`, listing the known ones, when it names a component
  /// that this version does not have.
  static Tokenizer from_file(const std::filesystem::path& tokenizer_json);

  /// The same for the text of such a file; `where` names it in errors.
  static Tokenizer from_json(std::string_view text, const std::string& where);

  /// The ids of `text`, with the special tokens of the post-processor if `add_special_tokens`.
  /// Throws `InvalidArgument` with the byte offset when `text` is not valid UTF-8.
  std::vector<int64_t> encode(std::string_view text, bool add_special_tokens = false) const;

  /// The ids and segment numbers of two texts that belong together (question and context, premise and
  /// hypothesis).
  Encoding encode_pair(std::string_view first, std::string_view second,
                       bool add_special_tokens = false) const;

  /// What `encode` adds to a text when asked for special tokens: `special_tokens().around(encode(text))` is
  /// `encode(text, true)`.
  SpecialTokens special_tokens() const;

  /// The text of `ids`. Byte-level tokens that do not add up to valid UTF-8 give U+FFFD, by the rules of the
  /// Unicode standard (one for each maximal ill-formed part).
  /// Throws `InvalidArgument` for an id outside the vocabulary.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special_tokens = false) const;

  /// Number of tokens, added ones included. Ids may have gaps, so the largest may lie above.
  int64_t vocab_size() const;

  std::optional<int64_t> token_to_id(std::string_view token) const;

  /// Throws `InvalidArgument` for an id outside the vocabulary.
  std::string id_to_token(int64_t id) const;

  /// `hash_of` the bytes of the file: identifies the tokenizer in reports.
  const std::string& hash() const;

 private:
  class Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}

  std::shared_ptr<const Impl> impl_;
};

}  // namespace lcomp::io
