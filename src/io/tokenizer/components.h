#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/json_util.h"
#include "io/tokenizer/vocabulary.h"
#include "lcomp/io/tokenizer.h"

/// The five kinds of components of a tokenizer.json, and how they are built from it.
///
/// A new component is one new source file with its builder, the builder's declaration at the end of this
/// header, and a row in the table of its kind (tables.cpp).
namespace lcomp::io::tok {

/// A piece of the input on its way through the normalizers.
struct NormalizedText {
  std::string text;
  /// Whether its first character comes from byte 0 of the input (asked by Metaspace's scheme "first").
  bool at_start = false;
};
using Normalizer = std::function<void(NormalizedText&)>;

/// A piece on its way through the pre-tokenizers; never empty. The view is valid during the call only.
struct Piece {
  std::string_view text;
  bool at_start = false;
};
using PieceSink = std::function<void(Piece)>;
/// Hands the parts of a piece to the sink, in order. Pieces are pushed, not collected, so that memory does
/// not grow with the number of words.
using PreTokenizer = std::function<void(Piece, const PieceSink&)>;

/// Turns one word into ids.
class Model {
 public:
  virtual ~Model() = default;
  virtual const Vocabulary& vocabulary() const = 0;
  /// Appends the ids of `word` (not empty).
  virtual void tokenize(std::string_view word, std::vector<int64_t>& ids) const = 0;
};

/// Takes the encodings of one text or of a pair, gives the parts of the result, to be joined in order.
using PostProcessor = std::function<std::vector<Encoding>(std::vector<Encoding>, bool add_special_tokens)>;

/// Rewrites the list of token texts; the result of the last decoder is joined.
using Decoder = std::function<std::vector<std::string>(std::vector<std::string>)>;

/// The component named by the `type` of `json`. Each throws `Unsupported`, listing the known types, for
/// another one, and `CorruptFile` for fields that break the format.
Normalizer build_normalizer(const JsonView& json);
PreTokenizer build_pre_tokenizer(const JsonView& json);
std::unique_ptr<Model> build_model(const JsonView& json);
PostProcessor build_post_processor(const JsonView& json);
Decoder build_decoder(const JsonView& json);

// Builders of the tables' rows, one per type.

Normalizer build_normalizer_sequence(const JsonView& json);
Normalizer build_nfc(const JsonView& json);
Normalizer build_nfd(const JsonView& json);
Normalizer build_nfkc(const JsonView& json);
Normalizer build_nfkd(const JsonView& json);
Normalizer build_lowercase(const JsonView& json);
Normalizer build_strip(const JsonView& json);
Normalizer build_strip_accents(const JsonView& json);
Normalizer build_replace(const JsonView& json);
Normalizer build_prepend(const JsonView& json);
Normalizer build_byte_level_normalizer(const JsonView& json);
Normalizer build_bert_normalizer(const JsonView& json);

PreTokenizer build_pre_tokenizer_sequence(const JsonView& json);
PreTokenizer build_digits(const JsonView& json);
PreTokenizer build_split(const JsonView& json);
PreTokenizer build_byte_level(const JsonView& json);
PreTokenizer build_whitespace(const JsonView& json);
PreTokenizer build_whitespace_split(const JsonView& json);
PreTokenizer build_punctuation(const JsonView& json);
PreTokenizer build_metaspace(const JsonView& json);
PreTokenizer build_bert_pre_tokenizer(const JsonView& json);

std::unique_ptr<Model> build_bpe(const JsonView& json);
std::unique_ptr<Model> build_wordpiece(const JsonView& json);

PostProcessor build_post_processor_sequence(const JsonView& json);
PostProcessor build_byte_level_processing(const JsonView& json);
PostProcessor build_template_processing(const JsonView& json);
PostProcessor build_roberta_processing(const JsonView& json);
PostProcessor build_bert_processing(const JsonView& json);

Decoder build_decoder_sequence(const JsonView& json);
Decoder build_byte_level_decoder(const JsonView& json);
Decoder build_replace_decoder(const JsonView& json);
Decoder build_fuse(const JsonView& json);
Decoder build_strip_decoder(const JsonView& json);
Decoder build_byte_fallback(const JsonView& json);
Decoder build_metaspace_decoder(const JsonView& json);
Decoder build_bpe_decoder(const JsonView& json);
Decoder build_wordpiece_decoder(const JsonView& json);

}  // namespace lcomp::io::tok
