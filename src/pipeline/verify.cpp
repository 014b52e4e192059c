#include "lcomp/pipeline/verify.h"

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "pipeline/output_record.h"

namespace lcomp::pipeline {
Verification verify(const std::filesystem::path& directory, Observer& observer) {
  const Stopwatch watch;
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
  result.seconds = watch.seconds();
  return result;
}

}  // namespace lcomp::pipeline
