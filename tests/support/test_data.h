#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace lcomp::test {

/// A path below the shared test data ($LCOMP_TEST_DATA), or nothing when it is not there.
/// Tests that need it say `WARN("skipped: ...")` and return; scripts/test lists these messages.
std::optional<std::filesystem::path> shared_data(const std::string& relative);

/// The root of the checked-out source tree ($LCOMP_SOURCE_DIR).
std::filesystem::path source_dir();

/// A fresh directory under the system's temporary folder, removed with everything in it at the end of the
/// test.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace lcomp::test
