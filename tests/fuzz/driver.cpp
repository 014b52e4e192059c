// Runs a libFuzzer entry point on random mutations of seed files. No coverage guides it, but it needs nothing
// beyond the compiler, runs with the other tests, and every run can be repeated:
//
//   fuzz_NAME RUNS SEED_FILE...      $LCOMP_FUZZ_FACTOR multiplies RUNS, for long hunts
//
// The input at hand is kept in ./NAME.input, so a run that ends in an abort or a sanitizer's report leaves it
// there.
#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "lcomp/core/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr std::array kNumbers = {"0",
                                 "-1",
                                 "1",
                                 "3.5",
                                 "1e999",
                                 "-0",
                                 "4294967296",
                                 "9223372036854775807",
                                 "9223372036854775808",
                                 "18446744073709551615",
                                 "99999999999999999999999"};
constexpr std::array<char, 6> kBytes = {'\0', ' ', '\x7F', '\x80', '\xC0', '\xFF'};

std::string input;
std::string failing_path;

/// Runs on the way out of a failed process: nothing can be lost any more by calling what is not signal-safe.
void save_input(int signal) {
  std::ofstream(failing_path, std::ios::binary | std::ios::trunc) << input;
  std::fprintf(stderr, "the failing input is in %s\n", failing_path.c_str());
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path);
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The words of the format as the seeds show them: everything in quotes, and what JSON is built of.
std::vector<std::string> words_of(const std::vector<std::string>& seeds) {
  std::vector<std::string> words = {"[",    "]",    "{",  "}",  ",",    ":",
                                    "null", "true", "[]", "{}", "\"\"", "\\u0000"};
  for (const std::string& seed : seeds) {
    for (size_t begin = seed.find('"'); begin != std::string::npos;) {
      const size_t end = seed.find('"', begin + 1);
      if (end == std::string::npos) break;
      words.push_back(seed.substr(begin, end - begin + 1));
      begin = seed.find('"', end + 1);
    }
  }
  return words;
}

void replace_number(std::string& text, size_t from, lcomp::Rng& rng) {
  const auto begin = std::find_if(text.begin() + static_cast<std::ptrdiff_t>(from), text.end(), is_digit);
  const auto end = std::find_if_not(begin, text.end(), is_digit);
  if (begin != end) text.replace(begin, end, kNumbers[rng.below(kNumbers.size())]);
}

void edit(std::string& text, const std::vector<std::string>& words, lcomp::Rng& rng) {
  if (text.empty()) return;
  const size_t at = rng.below(text.size());
  const size_t length = std::min<size_t>(1 + rng.below(64), text.size() - at);
  switch (rng.below(8)) {
    case 0:
      text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8)));
      break;
    case 1:
      text[at] = kBytes[rng.below(kBytes.size())];
      break;
    case 2:
    case 3:
      replace_number(text, at, rng);
      break;
    case 4:
      text.erase(at, length);
      break;
    case 5:
      text.insert(at, text.substr(at, length));
      break;
    case 6:
      // Seldom: a short text leaves little for further edits.
      if (rng.below(4) == 0) text.resize(at);
      break;
    default:
      text.insert(at, words[rng.below(words.size())]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s RUNS SEED_FILE...\n", argv[0]);
    return 2;
  }
  const char* factor = std::getenv("LCOMP_FUZZ_FACTOR");
  const long long runs = std::atoll(argv[1]) * (factor != nullptr ? std::atoll(factor) : 1);
  std::vector<std::string> seeds;
  for (int i = 2; i < argc; ++i) seeds.push_back(read_file(argv[i]));
  const std::vector<std::string> words = words_of(seeds);
  failing_path = std::filesystem::path(argv[0]).filename().string() + ".input";
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE}) std::signal(signal, save_input);

  for (long long run = 0; run < runs; ++run) {
    lcomp::Rng rng(static_cast<uint64_t>(run), "fuzz");
    input = seeds[rng.below(seeds.size())];
    for (uint64_t edits = run == 0 ? 0 : 1 + rng.below(6); edits > 0; --edits) edit(input, words, rng);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  }
  std::printf("%lld inputs from %zu seeds\n", runs, seeds.size());
  return 0;
}
