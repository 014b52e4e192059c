// Runs a libFuzzer entry point on random mutations of seed files, with nothing beyond the compiler, so that
// it runs with the other tests and every run can be repeated:
//
//   fuzz_NAME RUNS [--seed N] [--seconds N] [--dictionary FILE] [--corpus FOLDER] FILE...
//
// The files come first, as they are: `fuzz_NAME 1 FILE` replays one. Mutations know the words of the files
// and of the dictionary, which is in libFuzzer's format. In a build with coverage (the preset fuzz) an input
// that takes a new way through the code becomes a seed too, and goes to the corpus folder, whose files are
// seeds of later runs. --seed chooses other mutations; --seconds ends before RUNS do.
//
// An abort, a sanitizer's report, or an input that takes a minute leaves the input in ./fuzz_NAME.input.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "lcomp/core/rng.h"
#include "lcomp/io/hash.h"

extern "C" {
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
[[gnu::weak]] size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed);
[[gnu::weak]] void __sanitizer_set_death_callback(void (*callback)());
}

namespace {

namespace fs = std::filesystem;

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
constexpr unsigned kSecondsPerInput = 60;
constexpr size_t kMostBytes = size_t{1} << 20;

std::string program;
std::string input;
std::string failing_path;
std::vector<std::string> pool;   ///< what mutations start from
std::vector<std::string> words;  ///< that they insert
lcomp::Rng rng(0);

/// Ways through the code, by pairs of places one after the other: how often in this run (in powers of two),
/// and which were ever seen.
constexpr size_t kPlaces = size_t{1} << 16;
std::array<uint8_t, kPlaces> hits;
std::array<uint8_t, kPlaces> seen;
size_t last_place = 0;

/// Runs on the way out of a failed process: nothing can be lost any more by calling what is not signal-safe.
void save_input() {
  std::ofstream(failing_path, std::ios::binary | std::ios::trunc) << input;
  std::fprintf(stderr, "the failing input is in %s; replay it with: %s 1 %s\n", failing_path.c_str(),
               program.c_str(), failing_path.c_str());
}

void save_and_die(int signal) {
  if (signal == SIGALRM) std::fprintf(stderr, "an input takes more than %u s\n", kSecondsPerInput);
  save_input();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

[[noreturn]] void refuse(const std::string& text) {
  std::fprintf(stderr, "%s: %s\n", program.c_str(), text.c_str());
  std::exit(2);
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The words of the format as the seeds show them: everything in quotes, and what JSON is built of.
void add_words_of(const std::string& seed) {
  for (size_t begin = seed.find('"'); begin != std::string::npos;) {
    const size_t end = seed.find('"', begin + 1);
    if (end == std::string::npos) break;
    words.push_back(seed.substr(begin, end - begin + 1));
    begin = seed.find('"', end + 1);
  }
}

/// The value of a line `name="value"` of a dictionary, with \\, \" and \xAB resolved.
std::string unescaped(const std::string& line) {
  const size_t begin = line.find('"'), end = line.rfind('"');
  if (begin == std::string::npos || begin == end) refuse("not a line of a dictionary: " + line);
  std::string value;
  for (size_t i = begin + 1; i < end; ++i) {
    if (line[i] == '\\' && line[i + 1] == 'x') {
      value += static_cast<char>(std::stoi(line.substr(i + 2, 2), nullptr, 16));
      i += 3;
    } else {
      if (line[i] == '\\') ++i;
      value += line[i];
    }
  }
  return value;
}

void add_dictionary(const fs::path& path) {
  std::ifstream file(path);
  if (!file) refuse("cannot read " + path.string());
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line[0] != '#') words.push_back(unescaped(line));
  }
}

void replace_number(std::string& text, size_t from) {
  const auto begin = std::find_if(text.begin() + static_cast<std::ptrdiff_t>(from), text.end(), is_digit);
  const auto end = std::find_if_not(begin, text.end(), is_digit);
  if (begin != end) text.replace(begin, end, kNumbers[rng.below(kNumbers.size())]);
}

void edit(std::string& text) {
  if (text.empty()) return;
  const size_t at = rng.below(text.size());
  const size_t length = std::min<size_t>(1 + rng.below(64), text.size() - at);
  switch (rng.below(10)) {
    case 0:
      text[at] = static_cast<char>(text[at] ^ (1 << rng.below(8)));
      break;
    case 1:
      text[at] = kBytes[rng.below(kBytes.size())];
      break;
    case 2:
    case 3:
      replace_number(text, at);
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
    case 7: {
      const std::string& other = pool[rng.below(pool.size())];
      const size_t from = rng.below(other.size() + 1);
      text.insert(at, other.substr(from, 1 + rng.below(256)));
      break;
    }
    case 8: {
      const std::string& word = words[rng.below(words.size())];
      text.replace(at, word.size(), word);
      break;
    }
    default:
      text.insert(at, words[rng.below(words.size())]);
  }
}

}  // namespace

/// What a custom mutator calls for the ordinary mutations.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most) {
  std::string text(reinterpret_cast<const char*>(data), size);
  for (uint64_t edits = 1 + rng.below(6); edits > 0; --edits) edit(text);
  text.resize(std::min(text.size(), most));
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

/// The compiler calls it at every edge of the code in a build with coverage.
extern "C" [[gnu::no_sanitize("address", "undefined")]] void __sanitizer_cov_trace_pc() {
  const auto place = static_cast<size_t>(static_cast<const char*>(__builtin_return_address(0)) -
                                         reinterpret_cast<const char*>(&LLVMFuzzerTestOneInput));
  const size_t mixed = (place * 0x9E3779B97F4A7C15U) >> 48;
  uint8_t& count = hits[(mixed ^ last_place) % kPlaces];
  if (count < UINT8_MAX) ++count;
  last_place = mixed >> 1;
}

namespace {

std::string mutated(std::string text) {
  std::vector<uint8_t> buffer(std::max(text.size(), std::min(text.size() + 4096, kMostBytes)));
  std::memcpy(buffer.data(), text.data(), text.size());
  const size_t size = LLVMFuzzerCustomMutator != nullptr
                          ? LLVMFuzzerCustomMutator(buffer.data(), text.size(), buffer.size(),
                                                    static_cast<unsigned>(rng.next()))
                          : LLVMFuzzerMutate(buffer.data(), text.size(), buffer.size());
  text.assign(reinterpret_cast<const char*>(buffer.data()), size);
  return text;
}

/// Whether the last run took a way that none before it did; counts that differ by their power of two are
/// different ways.
bool is_new_way() {
  bool found = false;
  for (size_t i = 0; i < kPlaces; ++i) {
    if (hits[i] == 0) continue;
    const auto magnitude = static_cast<uint8_t>(1 << (31 - __builtin_clz(hits[i])));
    found = found || (seen[i] & magnitude) == 0;
    seen[i] |= magnitude;
  }
  return found;
}

void run_input() {
  hits.fill(0);
  last_place = 0;
  alarm(kSecondsPerInput);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  alarm(0);
}

struct Arguments {
  long long runs = 0;
  long long seed = 0;
  long long seconds = 0;  ///< 0: no limit
  fs::path corpus;
};

long long number_in(const std::string& text, const std::string& what) {
  long long number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0)
    refuse(what + " must be a whole number from 0 up; received '" + text + "'");
  return number;
}

/// Fills `pool` and `words` too.
Arguments read_arguments(const std::vector<std::string>& given) {
  Arguments arguments;
  words = {"[", "]", "{", "}", ",", ":", "null", "true", "[]", "{}", "\"\"", "\\u0000"};
  if (given.empty())
    refuse("usage: RUNS [--seed N] [--seconds N] [--dictionary FILE] [--corpus FOLDER] FILE...");
  const char* factor = std::getenv("LCOMP_FUZZ_FACTOR");
  arguments.runs =
      number_in(given[0], "RUNS") * (factor != nullptr ? number_in(factor, "LCOMP_FUZZ_FACTOR") : 1);
  for (size_t i = 1; i < given.size(); ++i) {
    if (!given[i].starts_with("--")) {
      pool.push_back(read_file(given[i]));
      continue;
    }
    const std::string& option = given[i];
    if (++i == given.size()) refuse(option + " needs a value");
    if (option == "--seed") {
      arguments.seed = number_in(given[i], option);
    } else if (option == "--seconds") {
      arguments.seconds = number_in(given[i], option);
    } else if (option == "--dictionary") {
      add_dictionary(given[i]);
    } else if (option == "--corpus") {
      arguments.corpus = given[i];
      fs::create_directories(given[i]);
      for (const auto& file : fs::directory_iterator(given[i])) pool.push_back(read_file(file.path()));
    } else {
      refuse("no such option: " + option);
    }
  }
  if (pool.empty()) refuse("there must be a file to begin with");
  for (const std::string& seed : pool) add_words_of(seed);
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  program = argv[0];
  failing_path = fs::path(program).filename().string() + ".input";
  const Arguments arguments = read_arguments({argv + 1, argv + argc});
  for (const int signal : {SIGABRT, SIGSEGV, SIGFPE, SIGALRM}) std::signal(signal, save_and_die);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(save_input);

  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  const size_t given = pool.size();
  long long run = 0;
  for (;
       run < arguments.runs && (arguments.seconds <= 0 || elapsed() < static_cast<double>(arguments.seconds));
       ++run) {
    rng = lcomp::Rng(static_cast<uint64_t>(run), "fuzz " + std::to_string(arguments.seed));
    const bool is_given = run < static_cast<long long>(given);
    input = is_given ? pool[static_cast<size_t>(run)] : mutated(pool[rng.below(pool.size())]);
    run_input();
    if (!is_new_way() || is_given) continue;
    pool.push_back(input);
    if (!arguments.corpus.empty())
      std::ofstream(arguments.corpus / lcomp::io::hash_of(input), std::ios::binary) << input;
  }
  const auto ways = std::count_if(seen.begin(), seen.end(), [](uint8_t way) { return way != 0; });
  std::printf("%lld inputs from %zu seeds, %.0f a second", run, given, static_cast<double>(run) / elapsed());
  if (ways > 0) std::printf("; %td ways, %zu seeds found", ways, pool.size() - given);
  std::printf("\n");
  return 0;
}
