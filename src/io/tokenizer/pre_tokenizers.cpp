#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/components.h"
#include "io/tokenizer/metaspace.h"
#include "io/tokenizer/pattern.h"
#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

/// GPT-2's words (Radford et al. 2019, `encoder.py`): contractions, letters, numbers and symbols, each with
/// at most one space in front, then runs of white space that leave their last space to the next word.
constexpr std::string_view kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

Piece part_of(Piece piece, Range range) {
  return {piece.text.substr(range.begin, range.end - range.begin), piece.at_start && range.begin == 0};
}

Splitter splitter_of(Piece piece, SplitBehavior behavior, const PieceSink& sink) {
  return Splitter(behavior, [piece, &sink](Range range) { sink(part_of(piece, range)); });
}

void split_at_pattern(Piece piece, const Pattern& pattern, SplitBehavior behavior, bool invert,
                      const PieceSink& sink) {
  Splitter splitter = splitter_of(piece, behavior, sink);
  pattern.for_each_span(piece.text, [&](Span span) { splitter.add({span.range, span.match != invert}); });
  splitter.finish();
}

/// Splits at the code points that satisfy `matches`.
PreTokenizer split_at(bool (*matches)(char32_t), SplitBehavior behavior) {
  return [matches, behavior](Piece piece, const PieceSink& sink) {
    Splitter splitter = splitter_of(piece, behavior, sink);
    for_each_code_point_span(piece.text, matches, [&](Span span) { splitter.add(span); });
    splitter.finish();
  };
}

enum class CharacterClass { kWhiteSpace, kWord, kOther };

CharacterClass class_of(char32_t code_point) {
  if (is_word(code_point)) return CharacterClass::kWord;
  return is_white_space(code_point) ? CharacterClass::kWhiteSpace : CharacterClass::kOther;
}

}  // namespace

PreTokenizer build_pre_tokenizer_sequence(const JsonView& json) {
  std::vector<PreTokenizer> steps;
  for (const JsonView& step : json.at("pretokenizers").elements()) steps.push_back(build_pre_tokenizer(step));
  return [steps](Piece piece, const PieceSink& sink) {
    // Each step's sink feeds the next step; the last one feeds ours.
    std::vector<PieceSink> sinks(steps.size() + 1);
    sinks.back() = std::cref(sink);
    for (size_t i = steps.size(); i-- > 0;) {
      sinks[i] = [&step = steps[i], &next = sinks[i + 1]](Piece part) { step(part, next); };
    }
    sinks.front()(piece);
  };
}

PreTokenizer build_digits(const JsonView& json) {
  const bool individual = json.boolean_or("individual_digits", false);
  return split_at(is_number, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
}

PreTokenizer build_split(const JsonView& json) {
  const Pattern pattern = Pattern::from_json(json.at("pattern"));
  const SplitBehavior behavior = split_behavior(json.at("behavior"));
  const bool invert = json.boolean_or("invert", false);
  return [pattern, behavior, invert](Piece piece, const PieceSink& sink) {
    split_at_pattern(piece, pattern, behavior, invert, sink);
  };
}

PreTokenizer build_byte_level(const JsonView& json) {
  const bool add_prefix_space = json.boolean_or("add_prefix_space", true);
  const bool use_regex = json.boolean_or("use_regex", true);
  const Pattern words = Pattern::regex(kGpt2Words, json.place());
  return [add_prefix_space, use_regex, words](Piece piece, const PieceSink& sink) {
    std::string prefixed;
    if (add_prefix_space && piece.text.front() != ' ') {
      prefixed += ' ';
      prefixed += piece.text;
      piece.text = prefixed;
    }
    std::string symbols;
    const auto emit = [&](Piece word) {
      symbols.clear();
      append_byte_symbols(symbols, word.text);
      sink({symbols, word.at_start});
    };
    if (!use_regex) return emit(piece);
    split_at_pattern(piece, words, SplitBehavior::kIsolated, false, emit);
  };
}

PreTokenizer build_whitespace(const JsonView&) {
  // Runs of word characters and runs of what is neither word nor white space: \w+|[^\w\s]+
  return [](Piece piece, const PieceSink& sink) {
    Range run;
    CharacterClass run_class = CharacterClass::kWhiteSpace;
    for (size_t position = 0; position < piece.text.size();) {
      const size_t begin = position;
      const CharacterClass next = class_of(next_code_point(piece.text, position));
      if (next != run_class) {
        if (run_class != CharacterClass::kWhiteSpace) sink(part_of(piece, run));
        run = {begin, begin};
        run_class = next;
      }
      run.end = position;
    }
    if (run_class != CharacterClass::kWhiteSpace) sink(part_of(piece, run));
  };
}

PreTokenizer build_whitespace_split(const JsonView&) {
  return split_at(is_white_space, SplitBehavior::kRemoved);
}

PreTokenizer build_punctuation(const JsonView& json) {
  const auto behavior = json.find("behavior");
  return split_at(is_punctuation, behavior ? split_behavior(*behavior) : SplitBehavior::kIsolated);
}

PreTokenizer build_bert_pre_tokenizer(const JsonView&) {
  const PreTokenizer words = split_at(is_white_space, SplitBehavior::kRemoved);
  const PreTokenizer parts = split_at(is_punctuation, SplitBehavior::kIsolated);
  return [words, parts](Piece piece, const PieceSink& sink) {
    words(piece, [&](Piece word) { parts(word, sink); });
  };
}

Metaspace Metaspace::from_json(const JsonView& json) {
  Metaspace metaspace;
  metaspace.replacement = json.at("replacement").text();
  if (metaspace.replacement.empty() ||
      metaspace.replacement.size() != utf8_length(static_cast<unsigned char>(metaspace.replacement[0]))) {
    json.at("replacement").fail("must be one character; it is " + quote_name(metaspace.replacement));
  }
  metaspace.split = json.boolean_or("split", true);
  const bool old_prefix = json.boolean_or("add_prefix_space", true);
  const std::string scheme = json.text_or("prepend_scheme", old_prefix ? "always" : "never");
  if (scheme == "never") {
    metaspace.scheme = PrependScheme::kNever;
  } else if (scheme == "first") {
    metaspace.scheme = PrependScheme::kFirst;
  } else if (scheme != "always") {
    json.at("prepend_scheme").fail("must be one of always, first, never; it is " + quote_name(scheme));
  }
  if (!old_prefix && metaspace.scheme != PrependScheme::kNever) {
    json.fail("add_prefix_space false must go with prepend_scheme never; it is " + quote_name(scheme));
  }
  return metaspace;
}

PreTokenizer build_metaspace(const JsonView& json) {
  const Metaspace metaspace = Metaspace::from_json(json);
  const Pattern space = Pattern::literal(" ");
  const Pattern mark = Pattern::literal(metaspace.replacement);
  return [metaspace, space, mark](Piece piece, const PieceSink& sink) {
    std::string marked;
    space.for_each_span(piece.text, [&](Span span) {
      marked += span.match ? std::string_view(metaspace.replacement) : part_of(piece, span.range).text;
    });
    const bool wanted = metaspace.scheme == PrependScheme::kAlways ||
                        (metaspace.scheme == PrependScheme::kFirst && piece.at_start);
    if (wanted && !marked.starts_with(metaspace.replacement)) marked.insert(0, metaspace.replacement);
    const Piece whole{marked, piece.at_start};
    if (!metaspace.split) return sink(whole);
    split_at_pattern(whole, mark, SplitBehavior::kMergedWithNext, false, sink);
  };
}

}  // namespace lcomp::io::tok
