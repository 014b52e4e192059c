#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

namespace lcomp::test {

/// A path below the shared test data ($LCOMP_TEST_DATA), or nothing when it is not there.
/// Tests that need it say `WARN("skipped: ...")` and return.
inline std::optional<std::filesystem::path> shared_data(const std::string& relative) {
  const char* root = std::getenv("LCOMP_TEST_DATA");
  if (root == nullptr || *root == '\0') return std::nullopt;
  std::filesystem::path path = std::filesystem::path(root) / relative;
  if (!std::filesystem::exists(path)) return std::nullopt;
  return path;
}

/// The root of the checked-out source tree ($LCOMP_SOURCE_DIR).
inline std::filesystem::path source_dir() {
  const char* root = std::getenv("LCOMP_SOURCE_DIR");
  return root != nullptr ? root : ".";
}

/// A fresh directory under the system's temporary folder, removed with everything in it at the end of the
/// test.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lcomp-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace lcomp::test
