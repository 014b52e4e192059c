#pragma once

#include <cstdint>
#include <string>

namespace lcomp {

/// Where a long call stands. `done` of `total` steps of `phase`; `detail` names the step at hand.
struct Progress {
  std::string phase;
  int64_t done = 0;
  int64_t total = 0;
  std::string detail;
};

/// How the library talks while it works: it never prints. Calls come from the thread that called the library.
class Observer {
 public:
  virtual ~Observer() = default;

  virtual void progress(const Progress&) {}
  virtual void warning(const std::string& /*text*/) {}
  virtual void note(const std::string& /*text*/) {}

  /// Asked between steps; `true` makes the call end with `Interrupted`, leaving a state that can be resumed.
  virtual bool cancelled() { return false; }
};

}  // namespace lcomp
