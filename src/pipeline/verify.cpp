#include "lcomp/pipeline/verify.h"

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "pipeline/compare_report.h"
#include "pipeline/output_record.h"

namespace lcomp::pipeline {
namespace {

/// The first tensor that no pass changed and that `source` does not have like this; "" when it has them all.
std::string foreign_tensor(const model::Model& source, const OutputRecord& record) {
  for (const auto& [name, hash] : record.copied) {
    const io::Checkpoint& tensors = source.checkpoint();
    if (!tensors.contains(name) || tensors.hash_of_tensor(name) != hash) return name;
  }
  return "";
}

/// The model that the output was made from; nothing, and the reason in `result`, when it is not there.
std::optional<model::Model> open_source(const model::Model& output, const OutputRecord& record,
                                        const std::filesystem::path& against, OutputCheck& result) {
  const std::filesystem::path path = against.empty() ? std::filesystem::path(record.source) : against;
  try {
    model::Model source = model::Model::open(path);
    std::string foreign = foreign_tensor(source, record);
    if (foreign.empty() && source.size() != output.size()) foreign = "num_hidden_layers";
    if (foreign.empty()) return source;
    throw ConfigError(path.string(),
                      fmt::format("the model must be the one that {} was made from; its '{}' is another",
                                  output.where(), foreign));
  } catch (const Error& error) {
    if (!against.empty()) throw ConfigError(error);
    result.not_compared = error.what();
  }
  return std::nullopt;
}

std::string check_report(const std::filesystem::path& directory, const model::Model& output,
                         const OutputRecord& record, const std::filesystem::path& against,
                         OutputCheck& result) {
  const std::filesystem::path path = directory / "report.json";
  if (!std::filesystem::exists(path)) {
    result.not_compared = fmt::format("[{}] there is no report.json", directory.string());
    return "";
  }
  const RunReport report = from_json(io::read_file(path));
  const auto source = open_source(output, record, against, result);
  return compare_report(output, report, source ? &*source : nullptr, result);
}

}  // namespace

OutputCheck verify(const std::filesystem::path& directory, Observer& observer,
                   const std::filesystem::path& against) {
  const Stopwatch watch;
  const std::filesystem::path path = directory / OutputRecord::kFileName;
  if (!std::filesystem::exists(path)) {
    throw CorruptFile(directory.string(),
                      fmt::format("an output of lcomp must hold {}; there is none", OutputRecord::kFileName));
  }
  OutputCheck result;
  try {
    const OutputRecord record = OutputRecord::from_json(io::read_file(path), path.string());
    result.message = compare_files(directory, record, observer, result);
    if (result.message.empty()) {
      const model::Model model = model::Model::open(directory);
      result.message = compare_tensors(model, record, result);
      if (result.message.empty()) result.message = check_report(directory, model, record, against, result);
    }
  } catch (const CorruptFile& damage) {
    result.message = damage.what();
  }
  result.passed = result.message.empty();
  result.seconds = watch.seconds();
  return result;
}

}  // namespace lcomp::pipeline
