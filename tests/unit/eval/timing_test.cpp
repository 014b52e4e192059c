#include "lcomp/eval/timing.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"

using namespace lcomp::eval;
using lcomp::test::error_text;

namespace {

/// A clock that only the timed calls move on.
struct FakeClock {
  double now = 0;

  std::function<void()> call(double seconds) {
    return [this, seconds] { now += seconds; };
  }
  TimingOptions options(int64_t repeats) {
    return {.warmup = 1, .repeats = repeats, .shortest = 1, .clock = [this] { return now; }};
  }
};

}  // namespace

TEST_CASE("a timing is the time of one call, however often a round makes it", "[eval][timing]") {
  FakeClock clock;
  int64_t calls = 0;
  const auto timings = time_in_turn({clock.call(8),
                                     [&] {
                                       ++calls;
                                       clock.now += 0.25;
                                     }},
                                    clock.options(5));
  REQUIRE(timings.size() == 2);
  REQUIRE(timings[0].seconds == std::vector<double>(5, 8));
  REQUIRE(timings[1].seconds == std::vector<double>(5, 0.25));
  REQUIRE(calls == 1 + 5 * 4);  // the warm-up showed that four calls last the shortest time
}

TEST_CASE("calls take turns, so that a slow phase of the machine hits all of them", "[eval][timing]") {
  FakeClock clock;
  int64_t made = 0;
  const auto slowing = [&] { clock.now += 1 + static_cast<double>(made++ / 2); };
  const auto timings = time_in_turn({slowing, slowing}, clock.options(4));
  REQUIRE(timings[0].seconds == std::vector<double>{2, 3, 4, 5});
  REQUIRE(timings[0].seconds == timings[1].seconds);
}

TEST_CASE("median and p90 are values that were measured", "[eval][timing]") {
  const Timing timing{{5, 1, 4, 2, 3, 9, 7, 8, 6, 10}};
  REQUIRE(timing.median() == 5);
  REQUIRE(timing.p90() == 9);
  REQUIRE(Timing{{3}}.median() == 3);
  REQUIRE(Timing{{3}}.p90() == 3);
}

TEST_CASE("faster is a lower median and three of four rounds won", "[eval][timing]") {
  const Timing rival{{10, 10, 10, 10}};
  REQUIRE(is_faster({{9, 9, 9, 9}}, rival));
  REQUIRE(is_faster({{9, 9, 9, 20}}, rival));
  REQUIRE_FALSE(is_faster({{9, 9, 20, 20}}, rival));  // half of the rounds
  REQUIRE_FALSE(is_faster(rival, rival));
  REQUIRE_FALSE(is_faster({{11, 11, 11, 11}}, rival));
  // Every round is compared with its own: a lower median alone does not do.
  REQUIRE_FALSE(is_faster({{1, 2, 8, 9}}, {{10, 1, 7, 9.5}}));
  REQUIRE(speedup({{4, 5, 6}}, {{9, 10, 11}}) == 2);
}

TEST_CASE("timings of what runs one after the other add up round by round", "[eval][timing]") {
  Timing sum;
  sum += {{1, 2}};
  sum += {{10, 20}};
  REQUIRE(sum.seconds == std::vector<double>{11, 22});
  REQUIRE((sum *= 2).seconds == std::vector<double>{22, 44});
  REQUIRE(error_text([&] { sum += {{1}}; }) ==
          "[Timing::operator+=] both must have as many rounds; they have 2 and 1");
  REQUIRE(error_text([&] { is_faster(sum, {{1}}); }) ==
          "[is_faster] both must have as many rounds; they have 2 and 1");
  REQUIRE(error_text([&] { time_in_turn({}, {.repeats = 0}); }) ==
          "[time_in_turn] repeats must be from 1 up; it is 0");
  REQUIRE(error_text([] { Timing{}.median(); }) == "[Timing] there must be a round; there is none");
}
