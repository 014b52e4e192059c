// Kills `lcomp run` over and over, at random instants and in the middle of random changes to its files, until
// it ends, and compares what it leaves with what an undisturbed run left.
//
//   kill9 [--kills N] [--seed S] [--jobs PATTERN]
//
// Kills are spread over all jobs (those whose names contain PATTERN). A failure names the seed; the same seed
// draws the same instants and changes again, though instants mean other work on another day. Exit code 0:
// every job ended in the bytes of its undisturbed run, and nothing was ever published that was not complete.
#include <fmt/format.h>
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>

#include "lcomp/core/observer.h"
#include "lcomp/core/rng.h"
#include "lcomp/pipeline/verify.h"
#include "torture/disk_model.h"
#include "torture/sandbox.h"

namespace {

using namespace lcomp;
using std::chrono::duration;
using std::chrono::microseconds;
using std::chrono::steady_clock;
using test::Fingerprint;
using test::Sandbox;

struct Arguments {
  long kills = 200;
  uint64_t seed = std::random_device()();
  std::string jobs;
};

/// What one job went through.
struct Tally {
  long by_time = 0;     ///< kills at an instant
  long by_change = 0;   ///< kills in the middle of a change of a file
  long early = 0;       ///< of all: before there was a working directory
  long working = 0;     ///< ... with work going on
  long assembling = 0;  ///< ... with the future output being put together, verified or evaluated
  long published = 0;   ///< ... with the output in place
  long lives = 0;       ///< runs that were started to be killed
  long completions = 0;

  long kills() const { return by_time + by_change; }
  Tally& operator+=(const Tally& other) {
    by_time += other.by_time;
    by_change += other.by_change;
    working += other.working;
    assembling += other.assembling;
    published += other.published;
    return *this;
  }
};

[[noreturn]] void fail(const std::string& what) {
  throw std::runtime_error(what);
}

/// The undisturbed run.
struct Reference {
  Fingerprint output;
  double seconds = 0;
  long changes = 0;
};

class Torture {
 public:
  Torture(const test::NamedJob& job, uint64_t seed) : sandbox_(job), rng_(seed, job.name) {
    run_undisturbed();
  }

  const Reference& reference() const { return reference_; }
  const Tally& tally() const { return tally_; }

  void go(long kills) {
    while (tally_.kills() < kills) run_with_kills(kills);
  }

 private:
  void run_undisturbed() {
    const auto begin = steady_clock::now();
    const auto result = sandbox_.run({{"LCOMP_FAULT_LOG", sandbox_.log().string()}});
    reference_.seconds = duration<double>(steady_clock::now() - begin).count();
    if (result.exit_code != 0)
      fail(fmt::format("the undisturbed run ended with {}: {}", result.exit_code, result.err));
    for (const test::LoggedCall& call : test::read_log(sandbox_.log())) {
      if (call.kind != "read") reference_.changes = call.number;
    }
    reference_.output = sandbox_.fingerprint();
    check_complete("the undisturbed run");
    sandbox_.clear();
  }

  /// Starts the job until it ends; every life but the last is killed.
  void run_with_kills(long most) {
    // The share of the work that is left, as far as can be told: later lives have less to do.
    double left = 1;
    while (true) {
      const bool shall_die = tally_.kills() < most && (left == 1 || rng_.uniform() < 0.7);
      if (!shall_die) {
        const auto result = sandbox_.run();
        check_end(result.exit_code, "after its last kill");
        break;
      }
      ++tally_.lives;
      const bool at_change = rng_.uniform() < 0.5;
      const bool late = rng_.uniform() < 0.4;
      const double share = late ? 0.8 + 0.2 * rng_.uniform() : rng_.uniform();
      const int code = at_change ? live_to_change(share * left) : live_to_instant(share * left);
      if (code != 128 + SIGKILL) {
        check_end(code, "in spite of a kill that came too late");
        break;
      }
      ++(at_change ? tally_.by_change : tally_.by_time);
      left = std::max(0.3, left * (1 - 0.7 * share));
      check_killed();
    }
    ++tally_.completions;
    check_complete("the continued run");
    if (const auto left_over = sandbox_.leftovers(); !left_over.empty())
      fail(fmt::format("'{}' is left beside the output; {}", left_over.front(), last_));
    sandbox_.clear();
  }

  int live_to_instant(double share) {
    const microseconds delay(static_cast<int64_t>(1e6 * share * reference_.seconds));
    last_ = fmt::format("the kill came after {} us", delay.count());
    const auto process = sandbox_.start();
    process->ends_within(delay);
    process->send(SIGKILL);
    return process->wait();
  }

  int live_to_change(double share) {
    const auto change = std::max<long>(1, std::lround(share * static_cast<double>(reference_.changes)));
    last_ = fmt::format("the kill came in change {}", change);
    return sandbox_.start({{"LCOMP_FAULT_KILL_AT", std::to_string(change)}})->wait();
  }

  void check_killed() {
    const std::filesystem::path work = sandbox_.output().string() + ".lcomp-work";
    if (sandbox_.is_published()) {
      ++tally_.published;
      check_complete("what stands under the output's name after a kill");
    } else {
      ++(std::filesystem::exists(work / "output" / "config.json") ? tally_.assembling
         : std::filesystem::exists(work)                          ? tally_.working
                                                                  : tally_.early);
    }
  }

  /// A life that was not killed: done, or it found that an earlier one had published and tidied up.
  void check_end(int code, const std::string& when) {
    const bool found_output =
        code == 2 && sandbox_.err().find("the output must not exist yet") != std::string::npos;
    if (code != 0 && !(found_output && sandbox_.is_published()))
      fail(fmt::format("the run ended with {} {}; {}: {}", code, when, last_, sandbox_.err()));
  }

  void check_complete(const std::string& what) {
    const std::string other = test::difference(reference_.output, sandbox_.fingerprint());
    if (!other.empty()) fail(fmt::format("{} differs from the undisturbed run: {}; {}", what, other, last_));
    Observer silent;
    const auto result = pipeline::verify(sandbox_.output(), silent);
    if (!result.passed) fail(fmt::format("{} does not verify: {}; {}", what, result.message, last_));
  }

  Sandbox sandbox_;
  Rng rng_;
  Reference reference_;
  Tally tally_;
  std::string last_ = "no kill came";
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--kills") {
      arguments.kills = std::atol(argv[i + 1]);
    } else if (name == "--seed") {
      arguments.seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else if (name == "--jobs") {
      arguments.jobs = argv[i + 1];
    } else {
      fail("usage: kill9 [--kills N] [--seed S] [--jobs PATTERN]; " + name + " came");
    }
  }
  return arguments;
}

void torture(const Arguments& arguments) {
  std::vector<test::NamedJob> jobs;
  for (const test::NamedJob& job : test::torture_jobs()) {
    if (job.name.find(arguments.jobs) != std::string::npos) jobs.push_back(job);
  }
  if (jobs.empty()) fail("no job's name contains " + arguments.jobs);
  fmt::print("kill9: seed {}, {} kills over {} jobs\n", arguments.seed, arguments.kills, jobs.size());
  // Fewer kills than jobs are for the jobs that the seed chooses.
  std::mt19937_64 order(arguments.seed);
  std::shuffle(jobs.begin(), jobs.end(), order);
  Tally all;
  for (size_t i = 0; i < jobs.size() && all.kills() < arguments.kills; ++i) {
    const auto left = static_cast<long>(jobs.size() - i);
    const long share = (arguments.kills - all.kills() + left - 1) / left;
    try {
      Torture job(jobs[i], arguments.seed);
      job.go(share);
      const Tally& t = job.tally();
      all += t;
      fmt::print(
          "{:<26} {:4} kills ({} by time, {} in changes; {} early, {} working, {} assembling, {} published), "
          "{} completions; undisturbed {:.2f} s, {} changes\n",
          jobs[i].name, t.kills(), t.by_time, t.by_change, t.early, t.working, t.assembling, t.published,
          t.completions, job.reference().seconds, job.reference().changes);
      std::fflush(stdout);
    } catch (const std::exception& error) {
      fail(fmt::format("{}: {} (repeat with --seed {} --jobs '{}' --kills {})", jobs[i].name, error.what(),
                       arguments.seed, jobs[i].name, share));
    }
  }
  // So many are spread over everything that a run does, or they prove little.
  for (const auto& [when, count] : {std::pair("in files", all.by_change),
                                    {"at work", all.working},
                                    {"while the output was put together", all.assembling},
                                    {"behind its publishing", all.published}}) {
    if (all.kills() >= 200 && count == 0) fail(fmt::format("none of {} kills came {}", all.kills(), when));
  }
  fmt::print(
      "kill9: {} kills survived ({} in changes of files; {} at work, {} with the output being put together, "
      "{} with it published)\n",
      all.kills(), all.by_change, all.working, all.assembling, all.published);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    torture(parse(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    fmt::print(stderr, "kill9: FAILED: {}\n", error.what());
    return 1;
  }
}
