#include "lcomp/calib/token_samples.h"

#include <catch2/catch.hpp>
#include <numeric>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "support/error_text.h"
#include "support/test_data.h"
#include "support/toy_tokenizer.h"

using namespace lcomp;
using calib::make_samples;
using calib::sequence_lengths;
using calib::ShortSamples;

namespace {

using Ids = std::vector<int64_t>;

Ids counting(int64_t first, int64_t count) {
  Ids ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

}  // namespace

TEST_CASE("sequence lengths share out the tokens exactly, longest first", "[calib][samples]") {
  REQUIRE(sequence_lengths(3, 8, 0) == Ids{8, 8, 8});
  REQUIRE(sequence_lengths(3, 8, 3) == Ids{8, 8, 8});
  REQUIRE(sequence_lengths(2, 8, 5) == Ids{8, 2, 2, 2, 2});
  REQUIRE(sequence_lengths(1, 8, 3) == Ids{3, 3, 2});
  REQUIRE(sequence_lengths(2, 4, 8) == Ids{1, 1, 1, 1, 1, 1, 1, 1});
  for (int64_t samples = 1; samples <= 5; ++samples) {
    for (int64_t starts = samples; starts <= samples * 7; ++starts) {
      const auto lengths = sequence_lengths(samples, 7, starts);
      CAPTURE(samples, starts);
      REQUIRE(static_cast<int64_t>(lengths.size()) == starts);
      REQUIRE(sum(lengths) == samples * 7);
      REQUIRE(std::is_sorted(lengths.rbegin(), lengths.rend()));
      REQUIRE(lengths.back() >= 1);
      REQUIRE(lengths.front() <= 7);
    }
  }
}

TEST_CASE("a number of starts that cannot be is refused", "[calib][samples]") {
  for (const int64_t starts : {1, 17}) {
    REQUIRE_THROWS_AS(sequence_lengths(2, 8, starts), InvalidArgument);
    REQUIRE(test::error_text([&] { sequence_lengths(2, 8, starts); }) ==
            "[calibration] starts must be 0 or lie between samples = 2 and samples * length = 16; received " +
                std::to_string(starts));
  }
}

TEST_CASE("packing joins documents end to end and cuts them in order", "[calib][samples]") {
  const auto out =
      make_samples({counting(0, 3), counting(3, 9), counting(12, 2)}, {.samples = 3, .length = 4}, "text");
  REQUIRE(out.sequences == std::vector<Ids>{counting(0, 4), counting(4, 4), counting(8, 4)});
  REQUIRE(out.documents == 3);
  REQUIRE(out.short_packed == 2);
  REQUIRE(out.short_dropped == 0);
  REQUIRE(out.tokens() == 12);
  REQUIRE(out.lengths() == Ids{4, 4, 4});
  REQUIRE(out.warnings.empty());
}

TEST_CASE("dropping leaves out short documents and takes as many windows from the others as they hold",
          "[calib][samples]") {
  const auto out = make_samples({counting(0, 3), counting(10, 9), counting(20, 4)},
                                {.samples = 3, .length = 4, .short_samples = ShortSamples::kDrop}, "text");
  REQUIRE(out.sequences == std::vector<Ids>{counting(10, 4), counting(14, 4), counting(20, 4)});
  REQUIRE(out.short_dropped == 1);
  REQUIRE(out.short_packed == 0);
}

TEST_CASE("where windows have several lengths, a document gives the longest wanted ones that fit",
          "[calib][samples]") {
  REQUIRE(sequence_lengths(2, 8, 5) == Ids{8, 2, 2, 2, 2});
  const calib::SampleOptions drop{
      .samples = 2, .length = 8, .starts = 5, .short_samples = ShortSamples::kDrop};
  const auto out =
      make_samples({counting(0, 3), counting(10, 1), counting(20, 13), counting(40, 9)}, drop, "text");
  REQUIRE(out.sequences == std::vector<Ids>{counting(0, 2), counting(20, 8), counting(28, 2), counting(30, 2),
                                            counting(40, 2)});
  REQUIRE(out.short_dropped == 1);
  REQUIRE(out.warnings.empty());

  const auto only_short = make_samples({counting(0, 3), counting(10, 3)}, drop, "text");
  REQUIRE(only_short.sequences == std::vector<Ids>{counting(0, 2), counting(10, 2)});
  REQUIRE(only_short.short_dropped == 0);

  const calib::SampleOptions error{
      .samples = 2, .length = 8, .starts = 5, .short_samples = ShortSamples::kError};
  REQUIRE(test::error_text([&] {
            make_samples({counting(0, 3), counting(10, 1)}, error, "text");
          }) == "[text] document 2 must have at least 2 tokens (short = \"error\"); it has 1");
}

TEST_CASE("the error policy names the short document", "[calib][samples]") {
  const auto call = [] {
    make_samples({counting(0, 4), counting(10, 3)},
                 {.samples = 3, .length = 4, .short_samples = ShortSamples::kError}, "text.jsonl");
  };
  REQUIRE_THROWS_AS(call(), ConfigError);
  REQUIRE(test::error_text(call) ==
          "[text.jsonl] document 2 must have at least 4 tokens (short = \"error\"); it has 3");
}

TEST_CASE("a text that gives fewer sequences than asked for says so", "[calib][samples]") {
  const auto out = make_samples({counting(0, 9)}, {.samples = 4, .length = 4}, "text");
  REQUIRE(out.sequences.size() == 2);
  REQUIRE(out.warnings ==
          std::vector<std::string>{"text: 4 sequences were asked for, the text gives 2 (8 tokens)"});
  SECTION("a text shorter than one window is used whole") {
    const auto tiny = make_samples({counting(0, 3)}, {.samples = 1, .length = 4}, "text");
    REQUIRE(tiny.sequences == std::vector<Ids>{counting(0, 3)});
  }
}

TEST_CASE("special tokens stand around every sequence, and count", "[calib][samples]") {
  const calib::SampleOptions framed{.samples = 3, .length = 4, .special = {{90}, {91}}};
  const auto out = make_samples({counting(0, 5), counting(5, 2)}, framed, "text");
  REQUIRE(out.sequences == std::vector<Ids>{{90, 0, 1, 91}, {90, 2, 3, 91}, {90, 4, 5, 91}});
  REQUIRE(out.tokens() == 12);
  REQUIRE(test::error_text([&] {
            make_samples({counting(0, 5)}, {.samples = 1, .length = 2, .special = {{90}, {91}}}, "text");
          }) ==
          "[calibration] every sequence must have room for a token beside the 2 special ones; the "
          "shortest has 2 tokens");
}

TEST_CASE("a text that gives nothing is refused", "[calib][samples]") {
  const auto empty = [] { make_samples({{}}, {.samples = 1, .length = 4}, "text"); };
  REQUIRE_THROWS_AS(empty(), ConfigError);
  REQUIRE(
      test::error_text(empty) ==
      "[text] the calibration text must give at least one sequence; it has 1 documents and 0 of them were "
      "dropped as short");
  REQUIRE(
      test::error_text([] {
        make_samples({{1}, {2}}, {.samples = 1, .length = 4, .short_samples = ShortSamples::kDrop}, "text");
      }) ==
      "[text] the calibration text must give at least one sequence; it has 2 documents and 2 of them "
      "were dropped as short");
}

TEST_CASE("text, lines of JSON and token ids are read alike", "[calib][samples]") {
  const test::TempDir dir;
  const auto tokenizer = test::load(test::abc_document());  // "abc" -> 4, "ab" -> 3
  const auto read = [&](const std::string& name, const std::string& text) {
    io::write_file_atomic(dir / name, text);
    return calib::read_samples(dir / name, tokenizer, {.samples = 1, .length = 3});
  };
  const auto plain = read("a.txt", "abcabcc");
  REQUIRE(plain.sequences == std::vector<Ids>{{4, 4, 2}});
  REQUIRE(plain.text_hash == io::hash_of("abcabcc"));
  REQUIRE(read("a.jsonl", "{\"text\": \"abcabc\"}\n\n  \r\n{\"input_ids\": [2, 9]}").sequences ==
          plain.sequences);
  REQUIRE(read("ids.json", "[4, 4, 2, 1]").sequences == plain.sequences);
  REQUIRE(read("lists.json", "[[4], [4, 2]]").sequences == plain.sequences);

  const auto text_of = [&](const std::string& name, const std::string& text) {
    return test::error_text([&] { read(name, text); });
  };
  const std::string place = "[" + dir.path().string() + "/";
  REQUIRE(text_of("map.json", "{}") ==
          place + "map.json] the file must hold a list of token ids or a list of such lists");
  REQUIRE_THAT(text_of("negative.json", "[1, -1]"), Catch::StartsWith(place + "negative.json: /1] "));
  REQUIRE_THAT(text_of("field.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"a\"}"),
               Catch::StartsWith(place + "field.jsonl:2") && Catch::Contains("text"));
  REQUIRE_THAT(text_of("broken.jsonl", "{\"text\": "), Catch::StartsWith(place + "broken.jsonl:1"));
  REQUIRE(text_of("latin1.txt", "\r\na\xFF") ==
          place + "latin1.txt] the text must be valid UTF-8; byte 3 (0xFF) is not");
  REQUIRE_THROWS_AS(read("latin1.txt", "\xFF"), CorruptFile);
  REQUIRE_THAT(text_of("latin1.jsonl", "{\"text\": \"\xFF\"}"), Catch::StartsWith(place + "latin1.jsonl:1"));
}

TEST_CASE("kept documents are samples by themselves, however short", "[calib][samples]") {
  using Ids = std::vector<int64_t>;
  const std::vector<Ids> documents = {{1, 2, 3}, {4}, {5, 6}, {1, 2, 3, 4, 5, 6}, {7, 8}};
  calib::SampleOptions options;
  options.samples = 3;
  options.length = 4;
  options.short_samples = calib::ShortSamples::kKeep;
  const auto kept = calib::make_samples(documents, options, "test");
  CHECK(kept.sequences == std::vector<Ids>{{1, 2, 3}, {5, 6}, {1, 2, 3, 4}});
  CHECK(kept.short_dropped == 1);
  options.starts = 6;
  CHECK_THROWS_WITH(calib::make_samples(documents, options, "test"),
                    Catch::Contains("starts must be 0 where every document is a sample"));
}
