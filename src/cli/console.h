#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "lcomp/core/observer.h"

namespace lcomp::cli {

/// Shows on standard error what the library reports: a bar with the time left when that is a terminal, else a
/// line at the start and the end of each phase and every few seconds between.
class Console final : public Observer {
 public:
  explicit Console(bool quiet);
  ~Console() override;

  void progress(const Progress& step) override;
  void warning(const std::string& text) override;
  void note(const std::string& text) override;
  bool cancelled() override;

  /// One line for each message, "lcomp: error: ...".
  void error(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;

  void line(const std::string& text);
  void clear_bar();
  void draw_bar(const Progress& step);
  /// "1:23 left", or "" when there is nothing to go by.
  std::string time_left(const Progress& step) const;

  const bool quiet_;
  const bool terminal_;
  bool bar_shown_ = false;
  std::string phase_;
  int64_t phase_first_done_ = 0;  // what was done when the phase began, in a resumed run more than nothing
  Clock::time_point phase_start_;
  Clock::time_point last_shown_;
};

/// "0:07", "12:34", "2:03:04".
std::string clock_text(double seconds);

}  // namespace lcomp::cli
