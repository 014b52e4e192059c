#include "lcomp/calib/token_samples.h"

#include <numeric>

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
  const std::vector<int64_t> lengths = sequence_lengths(options.samples, options.length, options.starts);
  TokenSamples out;
  out.documents = static_cast<int64_t>(documents.size());
  if (options.short_samples == ShortSamples::kPack) {
    Ids stream;
    for (const Ids& document : documents) {
      out.short_packed +=
          documents.size() > 1 && static_cast<int64_t>(document.size()) < options.length ? 1 : 0;
      stream.insert(stream.end(), document.begin(), document.end());
    }
    cut(stream, lengths, out);
  } else {
    size_t next = 0;
    for (size_t d = 0; d < documents.size() && next < lengths.size(); ++d) {
      if (static_cast<int64_t>(documents[d].size()) < lengths[next]) {
        if (options.short_samples == ShortSamples::kError) {
          throw ConfigError(
              where, fmt::format("document {} must have at least {} tokens (short = \"error\"); it has {}",
                                 d + 1, lengths[next], documents[d].size()));
        }
        ++out.short_dropped;
        continue;
      }
      // A document serves as many windows as it holds.
      size_t position = 0;
      while (next < lengths.size() && position + static_cast<size_t>(lengths[next]) <= documents[d].size()) {
        const auto from = documents[d].begin() + static_cast<std::ptrdiff_t>(position);
        out.sequences.emplace_back(from, from + lengths[next]);
        position += static_cast<size_t>(lengths[next++]);
      }
    }
  }
  if (out.sequences.empty()) {
    throw ConfigError(where, fmt::format("the calibration text must give at least one sequence; it has {} "
                                         "documents and {} of them were dropped as short",
                                         out.documents, out.short_dropped));
  }
  if (out.sequences.size() < lengths.size()) {
    out.warnings.push_back(fmt::format("{}: {} sequences were asked for, the text gives {} ({} tokens)",
                                       where, lengths.size(), out.sequences.size(), out.tokens()));
  }
  return out;
}

TokenSamples read_samples(const std::filesystem::path& file, const io::Tokenizer& tokenizer,
                          const SampleOptions& options) {
  const std::string text = io::read_file(file);
  const std::string extension = file.extension().string();
  std::vector<Ids> documents;
  if (extension == ".json") {
    documents = read_json_documents(text, file.string());
  } else if (extension == ".jsonl") {
    documents = read_jsonl_documents(text, file.string(), tokenizer, options.jsonl_field);
  } else {
    documents = {tokenizer.encode(io::with_unix_line_ends(text))};
  }
  TokenSamples out = make_samples(documents, options, file.string());
  out.text_hash = io::hash_of(text);
  return out;
}

}  // namespace lcomp::calib
