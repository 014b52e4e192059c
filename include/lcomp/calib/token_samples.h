#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/io/tokenizer.h"

namespace lcomp::calib {

/// What becomes of a document that has fewer tokens than a sample: than each of the windows still wanted,
/// where `SampleOptions::starts` asks for several lengths.
enum class ShortSamples {
  kPack,   ///< documents are joined end to end and cut into samples
  kDrop,   ///< left out, and counted; a longer document gives the longest windows that fit, from its start
  kError,  ///< refused, naming the document
  kKeep,   ///< a sample by itself, however short: sentences for encoders. Of longer ones the start is taken
};

struct SampleOptions {
  std::string jsonl_field = "text";
  int64_t samples = 32;
  int64_t length = 2048;
  /// Number of sequences that begin somewhere; 0 means one per sample. More starts than samples give windows
  /// of mixed lengths with the same number of tokens, samples * length, in all. The first token of a sequence
  /// is an attention sink with huge activations, so statistics from few starts are fitted to a few particular
  /// tokens.
  int64_t starts = 0;
  ShortSamples short_samples = ShortSamples::kPack;
  /// Put around every sequence, of whose tokens they are some. None for language models.
  io::SpecialTokens special = {};
};

/// Token sequences for calibration, and how they came about.
struct TokenSamples {
  std::vector<std::vector<int64_t>> sequences;
  std::string text_hash;
  int64_t documents = 0;
  int64_t short_dropped = 0;  ///< documents left out
  int64_t short_packed = 0;   ///< documents joined with others
  std::vector<std::string> warnings;

  int64_t tokens() const;
  std::vector<int64_t> lengths() const;
};

/// Reads a `.txt` file (one document), `.jsonl` (a document a line: a string under `jsonl_field`, or token
/// ids under "input_ids"), or `.json` (a list of token ids, or a list of such lists). Text is tokenized
/// without special tokens; `SampleOptions::special` stand around each sequence. Throws CorruptFile when the
/// file cannot be read, is not UTF-8, or holds nothing to calibrate on.
TokenSamples read_samples(const std::filesystem::path& file, const io::Tokenizer& tokenizer,
                          const SampleOptions& options);

/// The same from token ids in memory.
TokenSamples make_samples(const std::vector<std::vector<int64_t>>& documents, const SampleOptions& options,
                          const std::string& where);

/// Lengths of the sequences that share out `samples * length` tokens: all of `length` when `starts` is 0 or
/// `samples`; else half of the tokens (rounded down to whole samples) in full windows and the rest spread
/// evenly over the other starts, longest first. Sums to samples * length exactly.
std::vector<int64_t> sequence_lengths(int64_t samples, int64_t length, int64_t starts);

}  // namespace lcomp::calib

namespace lcomp {

template <>
struct EnumNames<calib::ShortSamples> {
  static constexpr std::array<std::string_view, 4> names = {"pack", "drop", "error", "keep"};
};

}  // namespace lcomp
