#include "lcomp/calib/token_samples.h"

#include <functional>
#include <map>
#include <optional>
#include <span>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/text.h"

namespace lcomp::calib {
namespace {

using Ids = std::vector<int64_t>;

Ids read_ids(const io::JsonView& list) {
  return list.integers(0);
}

std::vector<Ids> read_json_documents(const std::string& text, const std::string& where) {
  const io::Json json = io::parse_json(text, where, {.error = ErrorKind::kConfig});
  const io::JsonView root(json, where, ErrorKind::kConfig);
  if (!json.is_array()) root.fail("the file must hold a list of token ids or a list of such lists");
  if (json.empty() || json.front().is_number()) return {read_ids(root)};
  std::vector<Ids> documents;
  for (const io::JsonView& element : root.elements()) documents.push_back(read_ids(element));
  return documents;
}

std::vector<Ids> read_jsonl_documents(const std::string& text, const std::string& where,
                                      const io::Tokenizer& tokenizer, const std::string& field) {
  std::vector<Ids> documents;
  size_t begin = 0;
  for (int64_t line = 1; begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view content(text.data() + begin, end - begin);
    begin = end + 1;
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", where, line);
    const io::Json json = io::parse_json(content, place, {.error = ErrorKind::kConfig});
    const io::JsonView document(json, place, ErrorKind::kConfig);
    if (const auto ids = document.find("input_ids")) {
      documents.push_back(read_ids(*ids));
    } else {
      documents.push_back(tokenizer.encode(document.at(field).text()));
    }
  }
  return documents;
}

/// Takes windows of the wanted lengths off the front of one long sequence.
void cut(const Ids& stream, const std::vector<int64_t>& lengths, TokenSamples& out) {
  size_t position = 0;
  for (const int64_t length : lengths) {
    const auto count = static_cast<size_t>(length);
    if (position + count > stream.size()) break;
    out.sequences.emplace_back(stream.begin() + static_cast<std::ptrdiff_t>(position),
                               stream.begin() + static_cast<std::ptrdiff_t>(position + count));
    position += count;
  }
  // A text shorter than one window is still something to calibrate on.
  if (out.sequences.empty() && !stream.empty()) out.sequences.push_back(stream);
}

/// The windows still wanted: how many of each length, longest first.
using WindowCounts = std::map<int64_t, int64_t, std::greater<>>;

/// Takes the longest window of at most `tokens` tokens off the list; nothing when all are longer.
std::optional<int64_t> take_window(WindowCounts& wanted, size_t tokens) {
  const auto found = wanted.lower_bound(static_cast<int64_t>(tokens));
  if (found == wanted.end()) return std::nullopt;
  const int64_t length = found->first;
  if (--found->second == 0) wanted.erase(found);
  return length;
}

/// Joins the documents end to end and cuts what results.
void pack_documents(const std::vector<Ids>& documents, const std::vector<int64_t>& lengths, int64_t full,
                    TokenSamples& out) {
  Ids stream;
  for (const Ids& document : documents) {
    out.short_packed += documents.size() > 1 && static_cast<int64_t>(document.size()) < full ? 1 : 0;
    stream.insert(stream.end(), document.begin(), document.end());
  }
  cut(stream, lengths, out);
}

/// A sample for each document, of its first tokens, in their order: as many as there are lengths.
void keep_documents(const std::vector<Ids>& documents, const std::vector<int64_t>& lengths,
                    TokenSamples& out) {
  constexpr size_t kLeast = 2;  // a token and one to predict
  for (const Ids& document : documents) {
    if (out.sequences.size() == lengths.size()) return;
    if (document.size() < kLeast) {
      ++out.short_dropped;
      continue;
    }
    const size_t count = std::min(document.size(), static_cast<size_t>(lengths.front()));
    out.sequences.emplace_back(document.begin(), document.begin() + static_cast<std::ptrdiff_t>(count));
  }
}

/// Takes as many windows off the front of each document as it holds, each the longest wanted that fits.
void fit_documents(const std::vector<Ids>& documents, const std::vector<int64_t>& lengths,
                   ShortSamples policy, const std::string& where, TokenSamples& out) {
  WindowCounts wanted;
  for (const int64_t length : lengths) ++wanted[length];
  for (size_t d = 0; d < documents.size() && !wanted.empty(); ++d) {
    const int64_t shortest = wanted.rbegin()->first;
    if (static_cast<int64_t>(documents[d].size()) < shortest) {
      if (policy == ShortSamples::kError) {
        throw ConfigError(
            where, fmt::format("document {} must have at least {} tokens (short = \"error\"); it has {}",
                               d + 1, shortest, documents[d].size()));
      }
      ++out.short_dropped;
      continue;
    }
    std::span<const int64_t> rest = documents[d];
    while (const auto length = take_window(wanted, rest.size())) {
      const auto window = rest.first(static_cast<size_t>(*length));
      out.sequences.emplace_back(window.begin(), window.end());
      rest = rest.subspan(window.size());
    }
  }
}

}  // namespace

int64_t TokenSamples::tokens() const {
  int64_t sum = 0;
  for (const Ids& sequence : sequences) sum += static_cast<int64_t>(sequence.size());
  return sum;
}

std::vector<int64_t> TokenSamples::lengths() const {
  std::vector<int64_t> out;
  for (const Ids& sequence : sequences) out.push_back(static_cast<int64_t>(sequence.size()));
  return out;
}

std::vector<int64_t> sequence_lengths(int64_t samples, int64_t length, int64_t starts) {
  if (starts == 0 || starts == samples) return std::vector<int64_t>(static_cast<size_t>(samples), length);
  if (starts < samples || starts > samples * length) {
    throw InvalidArgument(
        "calibration",
        fmt::format("starts must be 0 or lie between samples = {} and samples * length = {}; received {}",
                    samples, samples * length, starts));
  }
  // Half of the tokens in full windows, as long as the other starts get at least a token each.
  int64_t full = samples / 2;
  while (full > 0 && starts - full > (samples - full) * length) --full;
  std::vector<int64_t> lengths(static_cast<size_t>(full), length);
  const int64_t rest_tokens = (samples - full) * length;
  const int64_t rest_starts = starts - full;
  for (int64_t i = 0; i < rest_starts; ++i)
    lengths.push_back(rest_tokens / rest_starts + (i < rest_tokens % rest_starts ? 1 : 0));
  return lengths;
}

TokenSamples make_samples(const std::vector<Ids>& documents, const SampleOptions& options,
                          const std::string& where) {
  std::vector<int64_t> lengths = sequence_lengths(options.samples, options.length, options.starts);
  if (lengths.back() <= options.special.count()) {
    throw InvalidArgument("calibration",
                          fmt::format("every sequence must have room for a token beside the {} "
                                      "special ones; the shortest has {} tokens",
                                      options.special.count(), lengths.back()));
  }
  for (int64_t& length : lengths) length -= options.special.count();
  TokenSamples out;
  out.documents = static_cast<int64_t>(documents.size());
  if (options.short_samples == ShortSamples::kPack) {
    pack_documents(documents, lengths, options.length - options.special.count(), out);
  } else if (options.short_samples == ShortSamples::kKeep) {
    if (options.starts != 0) {
      throw InvalidArgument("calibration",
                            fmt::format("starts must be 0 where every document is a sample (short = "
                                        "\"keep\"); it is {}",
                                        options.starts));
    }
    keep_documents(documents, lengths, out);
  } else {
    fit_documents(documents, lengths, options.short_samples, where, out);
  }
  if (out.sequences.empty()) {
    throw ConfigError(where, fmt::format("the calibration text must give at least one sequence; it has {} "
                                         "documents and {} of them were dropped as short",
                                         out.documents, out.short_dropped));
  }
  for (Ids& sequence : out.sequences) sequence = options.special.around(sequence);
  if (out.sequences.size() < lengths.size()) {
    out.warnings.push_back(fmt::format("{}: {} sequences were asked for, the text gives {} ({} tokens)",
                                       where, lengths.size(), out.sequences.size(), out.tokens()));
  }
  return out;
}

TokenSamples read_samples(const std::filesystem::path& file, const io::Tokenizer& tokenizer,
                          const SampleOptions& options) try {
  const std::string text = io::read_file(file);
  if (text.empty())
    throw CorruptFile(file.string(), "the calibration text must hold text; the file is empty");
  const std::string extension = file.extension().string();
  std::vector<Ids> documents;
  if (extension == ".json") {
    documents = read_json_documents(text, file.string());
  } else if (extension == ".jsonl") {
    documents = read_jsonl_documents(text, file.string(), tokenizer, options.jsonl_field);
  } else {
    io::require_utf8(text, file.string());
    documents = {tokenizer.encode(io::with_unix_line_ends(text))};
  }
  TokenSamples out = make_samples(documents, options, file.string());
  out.text_hash = io::hash_of(text);
  return out;
} catch (const ConfigError& error) {  // of what the file holds, not of the job
  throw CorruptFile(error);
}

}  // namespace lcomp::calib
