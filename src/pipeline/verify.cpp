#include "lcomp/pipeline/verify.h"

#include <chrono>
#include <set>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "pipeline/output_record.h"

namespace lcomp::pipeline {
namespace {

/// Size and hash of every recorded file, and no file besides; returns "" or the first difference.
std::string compare_files(const std::filesystem::path& directory, const OutputRecord& record,
                          Observer& observer, Verification& result) {
  std::set<std::string> known{OutputRecord::kFileName};
  for (const io::FileRecord& file : record.files) {
    known.insert(file.name);
    if (!std::filesystem::exists(directory / file.name))
      return fmt::format("the file '{}' is missing", file.name);
    if (io::record_of(directory, file.name) != file)
      return fmt::format("the file '{}' differs from what was published", file.name);
    ++result.files_hashed;
    observer.progress(
        {"verify", result.files_hashed, static_cast<int64_t>(record.files.size()) + 1, file.name});
  }
  for (const std::filesystem::path& file : io::list_directory(directory)) {
    if (!known.contains(file.filename().string()))
      return fmt::format("the file '{}' is not in the record", file.filename().string());
  }
  return "";
}

}  // namespace

Verification verify(const std::filesystem::path& directory, Observer& observer) {
  const auto start = std::chrono::steady_clock::now();
  const std::filesystem::path path = directory / OutputRecord::kFileName;
  if (!std::filesystem::exists(path)) {
    throw CorruptFile(directory.string(),
                      fmt::format("an output of lcomp must hold {}; there is none", OutputRecord::kFileName));
  }
  Verification result;
  try {
    const OutputRecord record = OutputRecord::from_json(io::read_file(path), path.string());
    result.message = compare_files(directory, record, observer, result);
    if (result.message.empty())
      result.message = compare_tensors(model::Model::open(directory), record, result);
  } catch (const CorruptFile& damage) {
    result.message = damage.what();
  }
  result.passed = result.message.empty();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace lcomp::pipeline
