#include "io/tokenizer/components.h"
#include "lcomp/core/error.h"

namespace lcomp::io::tok {
namespace {

template <class Component>
struct Row {
  std::string_view type;
  Component (*build)(const JsonView&);
};

constexpr Row<Normalizer> kNormalizers[] = {
    {"BertNormalizer", build_bert_normalizer},
    {"ByteLevel", build_byte_level_normalizer},
    {"Lowercase", build_lowercase},
    {"NFC", build_nfc},
    {"NFD", build_nfd},
    {"NFKC", build_nfkc},
    {"NFKD", build_nfkd},
    {"Prepend", build_prepend},
    {"Replace", build_replace},
    {"Sequence", build_normalizer_sequence},
    {"Strip", build_strip},
    {"StripAccents", build_strip_accents},
};

constexpr Row<PreTokenizer> kPreTokenizers[] = {
    {"BertPreTokenizer", build_bert_pre_tokenizer},
    {"ByteLevel", build_byte_level},
    {"Digits", build_digits},
    {"Metaspace", build_metaspace},
    {"Punctuation", build_punctuation},
    {"Sequence", build_pre_tokenizer_sequence},
    {"Split", build_split},
    {"Whitespace", build_whitespace},
    {"WhitespaceSplit", build_whitespace_split},
};

constexpr Row<std::unique_ptr<Model>> kModels[] = {
    {"BPE", build_bpe},
    {"WordPiece", build_wordpiece},
};

constexpr Row<PostProcessor> kPostProcessors[] = {
    {"BertProcessing", build_bert_processing},         {"ByteLevel", build_byte_level_processing},
    {"RobertaProcessing", build_roberta_processing},   {"Sequence", build_post_processor_sequence},
    {"TemplateProcessing", build_template_processing},
};

constexpr Row<Decoder> kDecoders[] = {
    {"BPEDecoder", build_bpe_decoder},       {"ByteFallback", build_byte_fallback},
    {"ByteLevel", build_byte_level_decoder}, {"Fuse", build_fuse},
    {"Metaspace", build_metaspace_decoder},  {"Replace", build_replace_decoder},
    {"Sequence", build_decoder_sequence},    {"Strip", build_strip_decoder},
    {"WordPiece", build_wordpiece_decoder},
};

template <class Component, size_t N>
Component build(const Row<Component> (&table)[N], const std::string& type, const JsonView& json,
                std::string_view kind) {
  std::string known;
  for (const Row<Component>& row : table) {
    if (row.type == type) return row.build(json);
    known += (known.empty() ? "" : ", ") + std::string(row.type);
  }
  throw Unsupported(json.place(), fmt::format("the type of a {} must be one of {}; it is {}", kind, known,
                                              quote_name(type)));
}

/// Files written before the models were tagged lack the type, but each has a field of its own.
std::string model_type(const JsonView& json) {
  if (const auto type = json.find("type")) return type->text();
  if (json.find("merges")) return "BPE";
  if (json.find("max_input_chars_per_word")) return "WordPiece";
  json.fail("must have a type, or merges (BPE) or max_input_chars_per_word (WordPiece); it has none of them");
}

}  // namespace

Normalizer build_normalizer(const JsonView& json) {
  return build(kNormalizers, json.at("type").text(), json, "normalizer");
}

PreTokenizer build_pre_tokenizer(const JsonView& json) {
  return build(kPreTokenizers, json.at("type").text(), json, "pre-tokenizer");
}

std::unique_ptr<Model> build_model(const JsonView& json) {
  return build(kModels, model_type(json), json, "model");
}

PostProcessor build_post_processor(const JsonView& json) {
  return build(kPostProcessors, json.at("type").text(), json, "post-processor");
}

Decoder build_decoder(const JsonView& json) {
  return build(kDecoders, json.at("type").text(), json, "decoder");
}

}  // namespace lcomp::io::tok
