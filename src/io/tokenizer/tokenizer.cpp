#include "lcomp/io/tokenizer.h"

#include "io/json_util.h"
#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/components.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"

namespace lcomp::io {
namespace {

using tok::AddedToken;

void require_version(const JsonView& json) {
  const std::string version = json.text_or("version", "1.0");
  if (version != "1.0") {
    throw Unsupported(json.at("version").place(),
                      "the version must be \"1.0\"; it is " + quote_name(version));
  }
}

template <class Component>
Component optional_component(const JsonView& json, const std::string& key,
                             Component (*build)(const JsonView&)) {
  const auto part = json.find(key);
  return part ? build(*part) : Component();
}

void require_utf8(std::string_view text) {
  if (const auto bad = find_invalid_utf8(text)) {
    throw InvalidArgument("Tokenizer::encode",
                          fmt::format("the text must be valid UTF-8; byte {} (0x{:02X}) is not", *bad,
                                      static_cast<unsigned char>(text[*bad])));
  }
}

Encoding join(const std::vector<Encoding>& parts) {
  Encoding whole;
  for (const Encoding& part : parts) {
    whole.ids.insert(whole.ids.end(), part.ids.begin(), part.ids.end());
    whole.type_ids.insert(whole.type_ids.end(), part.type_ids.begin(), part.type_ids.end());
  }
  return whole;
}

std::string joined(const std::vector<std::string>& tokens, std::string_view separator) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) text += separator;
    text += tokens[i];
  }
  return text;
}

/// Appends the ids of words; a word that came before is copied from where its ids already stand.
class WordEncoder {
 public:
  WordEncoder(const tok::Model& model, std::vector<int64_t>& ids) : model_(model), ids_(ids) {}

  void add(std::string_view word) {
    const auto seen = ranges_.find(word);
    if (seen == ranges_.end()) {
      const size_t begin = ids_.size();
      model_.tokenize(word, ids_);
      if (word.size() <= kLongestKept) ranges_.emplace(word, IdRange{begin, ids_.size()});
      return;
    }
    const auto [begin, end] = seen->second;
    for (size_t i = begin; i < end; ++i) ids_.push_back(ids_[i]);
  }

 private:
  static constexpr size_t kLongestKept = 256;  // bytes; longer words hardly ever come twice
  struct IdRange {
    size_t begin;
    size_t end;
  };

  const tok::Model& model_;
  std::vector<int64_t>& ids_;
  tok::StringMap<IdRange> ranges_;
};

}  // namespace

class Tokenizer::Impl {
 public:
  Impl(const JsonView& json, std::string hash)
      : model_((require_version(json), tok::build_model(json.at("model")))),
        normalizer_(optional_component(json, "normalizer", tok::build_normalizer)),
        pre_tokenizer_(optional_component(json, "pre_tokenizer", tok::build_pre_tokenizer)),
        post_processor_(optional_component(json, "post_processor", tok::build_post_processor)),
        decoder_(optional_component(json, "decoder", tok::build_decoder)),
        added_(json.find("added_tokens"), model_->vocabulary(), normalizer_),
        hash_(std::move(hash)) {
    require_known_special_tokens(json);
  }

  Encoding encode(const std::vector<std::string_view>& texts, bool add_special_tokens) const {
    std::vector<Encoding> encodings;
    for (const std::string_view text : texts) {
      std::vector<int64_t> ids = encode_plain(text);
      std::vector<int64_t> type_ids(ids.size(), static_cast<int64_t>(encodings.size()));
      encodings.push_back({std::move(ids), std::move(type_ids)});
    }
    if (post_processor_) encodings = post_processor_(std::move(encodings), add_special_tokens);
    return encodings.size() == 1 ? std::move(encodings.front()) : join(encodings);
  }

  SpecialTokens special_tokens() const {
    if (!post_processor_) return {};
    constexpr int64_t kText = -1;  // no id
    const std::vector<int64_t> framed = join(post_processor_({{{kText}, {0}}}, true)).ids;
    const auto text = std::find(framed.begin(), framed.end(), kText);
    if (text == framed.end()) return {framed, {}};
    return {{framed.begin(), text}, {text + 1, framed.end()}};
  }

  std::string decode(const std::vector<int64_t>& ids, bool skip_special_tokens) const {
    std::vector<std::string> tokens;
    tokens.reserve(ids.size());
    for (const int64_t id : ids) {
      const AddedToken* added = added_.find(id);
      if (added != nullptr && added->special && skip_special_tokens) continue;
      tokens.push_back(added != nullptr ? added->normalized_content : model_token(id, "Tokenizer::decode"));
    }
    // Without a decoder, tokens are words: the reference joins them with spaces.
    if (!decoder_) return joined(tokens, " ");
    return joined(decoder_(std::move(tokens)), "");
  }

  int64_t vocab_size() const { return model_->vocabulary().size() + added_.number_of_new(); }

  std::optional<int64_t> token_to_id(std::string_view token) const {
    const AddedToken* added = added_.find(token);
    return added != nullptr ? std::optional(added->id) : model_->vocabulary().id(token);
  }

  std::string id_to_token(int64_t id) const {
    const AddedToken* added = added_.find(id);
    return added != nullptr ? added->content : model_token(id, "Tokenizer::id_to_token");
  }

  const std::string& hash() const { return hash_; }

 private:
  /// What the post-processor adds to nothing are its special tokens.
  void require_known_special_tokens(const JsonView& json) const {
    for (const Encoding& encoding : {encode({""}, true), encode({"", ""}, true)}) {
      for (const int64_t id : encoding.ids) {
        if (is_known(id)) continue;
        json.at("post_processor")
            .fail(fmt::format("special tokens must be in the vocabulary; id {} is not", id));
      }
    }
  }

  bool is_known(int64_t id) const {
    return added_.find(id) != nullptr || model_->vocabulary().token(id) != nullptr;
  }

  std::vector<int64_t> encode_plain(std::string_view text) const {
    require_utf8(text);
    std::vector<int64_t> ids;
    WordEncoder words(*model_, ids);
    const tok::PieceSink add_word = [&](tok::Piece word) { words.add(word.text); };
    added_.cut(text, normalizer_, [&](const tok::Section& section) {
      if (section.token != nullptr) {
        ids.push_back(section.token->id);
      } else if (pre_tokenizer_) {
        pre_tokenizer_(section.text, add_word);
      } else {
        add_word(section.text);
      }
    });
    return ids;
  }

  const std::string& model_token(int64_t id, const std::string& where) const {
    const std::string* token = model_->vocabulary().token(id);
    if (token == nullptr) {
      throw InvalidArgument(
          where, fmt::format("ids must be in the vocabulary of {} tokens; {} is not", vocab_size(), id));
    }
    return *token;
  }

  std::unique_ptr<tok::Model> model_;
  tok::Normalizer normalizer_;
  tok::PreTokenizer pre_tokenizer_;
  tok::PostProcessor post_processor_;
  tok::Decoder decoder_;
  tok::AddedTokens added_;
  std::string hash_;
};

Tokenizer Tokenizer::from_file(const std::filesystem::path& tokenizer_json) {
  return from_json(read_file(tokenizer_json), tokenizer_json.string());
}

Tokenizer Tokenizer::from_json(std::string_view text, const std::string& where) {
  const Json document = parse_json(text, where);
  return Tokenizer(std::make_shared<const Impl>(JsonView(document, where), hash_of(text)));
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  return impl_->encode({text}, add_special_tokens).ids;
}

Encoding Tokenizer::encode_pair(std::string_view first, std::string_view second,
                                bool add_special_tokens) const {
  return impl_->encode({first, second}, add_special_tokens);
}

SpecialTokens Tokenizer::special_tokens() const {
  return impl_->special_tokens();
}

std::vector<int64_t> SpecialTokens::around(const std::vector<int64_t>& ids) const {
  std::vector<int64_t> out = front;
  out.insert(out.end(), ids.begin(), ids.end());
  out.insert(out.end(), back.begin(), back.end());
  return out;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special_tokens) const {
  return impl_->decode(ids, skip_special_tokens);
}

int64_t Tokenizer::vocab_size() const {
  return impl_->vocab_size();
}

std::optional<int64_t> Tokenizer::token_to_id(std::string_view token) const {
  return impl_->token_to_id(token);
}

std::string Tokenizer::id_to_token(int64_t id) const {
  return impl_->id_to_token(id);
}

const std::string& Tokenizer::hash() const {
  return impl_->hash();
}

}  // namespace lcomp::io
