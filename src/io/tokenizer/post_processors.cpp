#include <map>

#include "io/tokenizer/components.h"
#include "lcomp/core/error.h"

namespace lcomp::io::tok {
namespace {

using Encodings = std::vector<Encoding>;

Encoding with_type(std::vector<int64_t> ids, int64_t type_id) {
  std::vector<int64_t> type_ids(ids.size(), type_id);
  return {std::move(ids), std::move(type_ids)};
}

/// One element of a template: the first or second text, or special tokens.
struct TemplatePiece {
  std::optional<size_t> sequence;
  std::vector<int64_t> special_ids;
  int64_t type_id = 0;
};
using Template = std::vector<TemplatePiece>;

std::map<std::string, std::vector<int64_t>> special_tokens_from_json(const JsonView& json) {
  std::map<std::string, std::vector<int64_t>> tokens;
  for (const auto& [name, token] : json.members()) {
    const std::vector<int64_t> ids = token.at("ids").integers(0, kMaxId);
    const size_t texts = token.at("tokens").texts().size();
    if (ids.size() != texts) {
      token.fail(fmt::format("ids and tokens must be of one length; there are {} and {}", ids.size(), texts));
    }
    tokens[name] = ids;
  }
  return tokens;
}

TemplatePiece piece_from_json(const JsonView& json,
                              const std::map<std::string, std::vector<int64_t>>& specials) {
  TemplatePiece piece;
  if (const auto sequence = json.find("Sequence")) {
    const std::string id = sequence->at("id").text();
    if (id != "A" && id != "B") sequence->at("id").fail("must be \"A\" or \"B\"; it is " + quote_name(id));
    piece.sequence = id == "A" ? 0 : 1;
    piece.type_id = sequence->at("type_id").integer(0, kMaxId);
    return piece;
  }
  if (const auto special = json.find("SpecialToken")) {
    const std::string id = special->at("id").text();
    const auto entry = specials.find(id);
    if (entry == specials.end())
      special->at("id").fail("must be in special_tokens; " + quote_name(id) + " is not");
    piece.special_ids = entry->second;
    piece.type_id = special->at("type_id").integer(0, kMaxId);
    return piece;
  }
  json.fail("must have the key Sequence or SpecialToken; it has neither");
}

Template template_from_json(const JsonView& json,
                            const std::map<std::string, std::vector<int64_t>>& specials) {
  Template pieces;
  for (const JsonView& piece : json.elements()) pieces.push_back(piece_from_json(piece, specials));
  return pieces;
}

bool uses(const Template& pieces, size_t sequence) {
  return std::any_of(pieces.begin(), pieces.end(),
                     [&](const TemplatePiece& p) { return p.sequence == sequence; });
}

Encodings apply(const Template& pieces, const Encodings& texts, bool add_special_tokens) {
  Encodings out;
  for (const TemplatePiece& piece : pieces) {
    if (piece.sequence) {
      out.push_back(with_type(texts[*piece.sequence].ids, piece.type_id));
    } else if (add_special_tokens) {
      out.push_back(with_type(piece.special_ids, piece.type_id));
    }
  }
  return out;
}

/// `[token, id]`
int64_t id_of_pair(const JsonView& json) {
  const std::vector<JsonView> pair = json.elements();
  if (pair.size() != 2) json.fail(fmt::format("must be [token, id]; it has {} elements", pair.size()));
  pair[0].text();
  return pair[1].integer(0, kMaxId);
}

void add_before(Encoding& encoding, int64_t id) {
  encoding.ids.insert(encoding.ids.begin(), id);
  encoding.type_ids.insert(encoding.type_ids.begin(), 0);
}

void add_behind(Encoding& encoding, int64_t id, int64_t type_id) {
  encoding.ids.push_back(id);
  encoding.type_ids.push_back(type_id);
}

bool only_trims_offsets(const JsonView& json) {
  return json.at("type").text() == "ByteLevel";
}

}  // namespace

PostProcessor build_post_processor_sequence(const JsonView& json) {
  std::vector<PostProcessor> steps;
  for (const JsonView& step : json.at("processors").elements()) {
    PostProcessor processor = build_post_processor(step);
    if (only_trims_offsets(step)) continue;
    steps.push_back(std::move(processor));
  }
  if (steps.size() > 1) {
    throw Unsupported(json.place(),
                      fmt::format("a sequence must have at most one post-processor that adds tokens; it "
                                  "has {}",
                                  steps.size()));
  }
  return steps.empty() ? build_byte_level_processing(json) : steps.front();
}

PostProcessor build_byte_level_processing(const JsonView&) {
  // It trims character offsets, which we do not keep.
  return [](Encodings texts, bool) { return texts; };
}

PostProcessor build_template_processing(const JsonView& json) {
  const auto specials = special_tokens_from_json(json.at("special_tokens"));
  const Template single = template_from_json(json.at("single"), specials);
  const Template pair = template_from_json(json.at("pair"), specials);
  if (uses(single, 1)) json.at("single").fail("must use the sequence A only; it uses B");
  if (!uses(pair, 0) || !uses(pair, 1))
    json.at("pair").fail("must use the sequences A and B; one is missing");
  return [single, pair](const Encodings& texts, bool add_special_tokens) {
    return apply(texts.size() == 1 ? single : pair, texts, add_special_tokens);
  };
}

PostProcessor build_roberta_processing(const JsonView& json) {
  const int64_t sep = id_of_pair(json.at("sep"));
  const int64_t cls = id_of_pair(json.at("cls"));
  return [sep, cls](Encodings texts, bool add_special_tokens) {
    for (size_t i = 0; i < texts.size(); ++i) {
      texts[i] = with_type(std::move(texts[i].ids), 0);
      if (!add_special_tokens) continue;
      add_before(texts[i], i == 0 ? cls : sep);
      add_behind(texts[i], sep, 0);
    }
    return texts;
  };
}

PostProcessor build_bert_processing(const JsonView& json) {
  const int64_t sep = id_of_pair(json.at("sep"));
  const int64_t cls = id_of_pair(json.at("cls"));
  return [sep, cls](Encodings texts, bool add_special_tokens) {
    if (!add_special_tokens) return texts;
    add_before(texts[0], cls);
    for (size_t i = 0; i < texts.size(); ++i) add_behind(texts[i], sep, i == 0 ? 0 : 1);
    return texts;
  };
}

}  // namespace lcomp::io::tok
