// What an outside program sees of an installed lcomp: headers that compile, archives that link, with all the
// libraries that they need.
#include <ATen/ATen.h>

#include <lcomp/lcomp.h>
#include <cstdio>

using namespace lcomp;

namespace {

int failed = 0;

void check(const char* what, bool as_expected) {
  std::printf("%s: %s\n", what, as_expected ? "as expected" : "WRONG");
  if (!as_expected) failed = 1;
}

/// Unicode normalization (utf8proc) and a regular expression (pcre2) in front of the vocabulary.
constexpr const char* kTokenizer = R"({
  "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Removed", "invert": false},
  "post_processor": null, "decoder": {"type": "Fuse"},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u00e9": 3}, "merges": [["a", "b"]]}
})";

/// The name of the model in the error of a run that cannot find it.
bool job_misses_its_model() {
  const auto methods = pipeline::builtin_methods();
  const auto job = pipeline::parse_job(
      R"({"model": "absent-model", "output": "absent-output", "passes": [{"method": "rtn"}]})", "job",
      methods);
  Observer silent;
  try {
    pipeline::run(job, methods, silent, report::write_reports);
  } catch (const Error& error) {
    return std::string(error.what()).find("absent-model") != std::string::npos;
  }
  return false;
}

}  // namespace

int main() {
  const DenseWeight weight(at::eye(4));
  check("a product", at::equal(weight.apply(at::ones({2, 4})), at::ones({2, 4})));
  const auto tokenizer = io::Tokenizer::from_json(kTokenizer, "consumer");
  check("a tokenizer", tokenizer.encode("ab e\u0301 ba") == std::vector<int64_t>{2, 3, 1, 0});
  check("a job", job_misses_its_model());
  return failed;
}
