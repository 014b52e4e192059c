#include "cli/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "cli/interrupt.h"
#include "cli/printable.h"

namespace lcomp::cli {
namespace {

constexpr auto kBarInterval = std::chrono::milliseconds(100);
constexpr auto kLineInterval = std::chrono::seconds(5);

size_t terminal_columns() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string steps_text(const Progress& step) {
  return step.total > 0 ? fmt::format("{}/{}", step.done, step.total) : fmt::format("{}", step.done);
}

}  // namespace

std::string clock_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::lround(seconds));
  const int64_t hours = whole / 3600;
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

Console::Console(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1) {}

Console::~Console() {
  clear_bar();
}

void Console::progress(const Progress& step) {
  if (quiet_) return;
  const auto now = Clock::now();
  const bool begins = step.phase != phase_;
  if (begins) {
    phase_ = step.phase;
    phase_first_done_ = step.done;
    phase_start_ = now;
  }
  const bool ends = step.total > 0 && step.done == step.total;
  const Clock::duration interval = terminal_ ? Clock::duration(kBarInterval) : Clock::duration(kLineInterval);
  if (!begins && !ends && now - last_shown_ < interval) return;
  last_shown_ = now;

  if (terminal_) {
    draw_bar(step);
    return;
  }
  std::string text = fmt::format("{} {}", step.phase, steps_text(step));
  if (!step.detail.empty()) text += " " + step.detail;
  const std::string left = time_left(step);
  line(left.empty() ? text : text + ", " + left);
}

void Console::warning(const std::string& text) {
  line("warning: " + text);
}

void Console::note(const std::string& text) {
  if (!quiet_) line(text);
}

bool Console::cancelled() {
  return interrupted();
}

void Console::error(const std::string& text) {
  line("error: " + text);
}

void Console::line(const std::string& text) {
  clear_bar();
  fmt::print(stderr, "lcomp: {}\n", printable(text));
}

void Console::clear_bar() {
  if (!bar_shown_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  bar_shown_ = false;
}

void Console::draw_bar(const Progress& step) {
  constexpr size_t kWidth = 24;
  const double share = step.total > 0 ? static_cast<double>(step.done) / static_cast<double>(step.total) : 0;
  const auto filled = static_cast<size_t>(std::clamp(share, 0.0, 1.0) * kWidth);
  std::string text = fmt::format("{:<10} [{:#<{}}{:-<{}}] {} {:3.0f}%", step.phase, "", filled, "",
                                 kWidth - filled, steps_text(step), 100 * share);
  const std::string left = time_left(step);
  if (!left.empty()) text += "  " + left;
  if (!step.detail.empty()) text += "  " + printable(step.detail);
  // A line that wraps could not be drawn over.
  text.resize(std::min(text.size(), terminal_columns() - 1));
  fmt::print(stderr, "\r{}\x1b[K", text);
  std::fflush(stderr);
  bar_shown_ = true;
}

std::string Console::time_left(const Progress& step) const {
  const int64_t done = step.done - phase_first_done_;
  if (done <= 0 || step.total <= step.done) return "";
  const double elapsed = std::chrono::duration<double>(Clock::now() - phase_start_).count();
  return clock_text(elapsed / static_cast<double>(done) * static_cast<double>(step.total - step.done)) +
         " left";
}

}  // namespace lcomp::cli
