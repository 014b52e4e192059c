#include "support/test_data.h"

#include <cstdlib>
#include <stdexcept>

namespace fs = std::filesystem;

namespace lcomp::test {

std::optional<fs::path> shared_data(const std::string& relative) {
  const char* root = std::getenv("LCOMP_TEST_DATA");
  if (root == nullptr || *root == '\0') return std::nullopt;
  fs::path path = fs::path(root) / relative;
  if (!fs::exists(path)) return std::nullopt;
  return path;
}

fs::path source_dir() {
  const char* root = std::getenv("LCOMP_SOURCE_DIR");
  return root != nullptr ? root : ".";
}

TempDir::TempDir() {
  std::string pattern = (fs::temp_directory_path() / "lcomp-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary directory: " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace lcomp::test
