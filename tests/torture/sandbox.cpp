#include "torture/sandbox.h"

#include <fmt/format.h>

#include <cstdlib>

#include "lcomp/io/hash.h"
#include "pipeline/job_runs.h"

namespace fs = std::filesystem;

namespace lcomp::test {
namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) throw std::runtime_error(fmt::format("{} must be set; CTest sets it", name));
  return value;
}

/// Without what tells how long things took and how often the run was started.
Json timeless(Json json) {
  if (json.is_object()) {
    Json kept = Json::object();
    for (const auto& [name, value] : json.items()) {
      if (!name.ends_with("seconds") && name != "resumed") kept[name] = timeless(value);
    }
    return kept;
  }
  if (json.is_array()) {
    for (Json& element : json) element = timeless(element);
  }
  return json;
}

std::string hash_of_report(const fs::path& file) {
  const Json report = read_json(file);
  Json kept;
  for (const char* part : {"status", "model", "calibration", "passes", "operators", "outliers", "blocks",
                           "totals", "evaluation", "warnings"})
    kept[part] = timeless(report.value(part, Json()));
  return io::hash_of(kept.dump());
}

std::string hash_of_record(const fs::path& file) {
  Json record = read_json(file);
  record.erase("checksum");
  Json files;
  for (const Json& entry : record["files"]) {
    if (!entry["name"].get<std::string>().starts_with("report.")) files.push_back(entry);
  }
  record["files"] = files;
  return io::hash_of(record.dump());
}

}  // namespace

Sandbox::Sandbox(const NamedJob& job) : folder_(dir_ / "folder"), job_(job.job) {
  fs::create_directory(folder_);
  if (job.is_tiny) {
    write_tiny_model(folder_ / "model");
  } else {
    fs::copy(bundled_model(), folder_ / "model", fs::copy_options::recursive);
  }
  job_["model"] = (folder_ / "model").string();
  job_["output"] = output().string();
  job_["calibration"]["text"] = calibration_text().string();
  if (job_.contains("evaluate")) job_["evaluate"]["text"] = evaluation_text().string();
  write_text(dir_ / "job.json", job_.dump(2));
}

std::unique_ptr<Process> Sandbox::start(const Faults& faults) const {
  std::vector<std::string> arguments;
  if (!faults.empty()) {
    arguments = {"/usr/bin/env", "LD_PRELOAD=" + variable("LCOMP_FAULT_LAYER"),
                 "LCOMP_FAULT_ROOT=" + folder_.string()};
    for (const auto& [name, value] : faults) arguments.push_back(fmt::format("{}={}", name, value));
  }
  for (const std::string& argument :
       {variable("LCOMP_BINARY"), std::string("run"), (dir_ / "job.json").string()})
    arguments.push_back(argument);
  return std::make_unique<Process>(arguments, (dir_ / "out").string(), (dir_ / "err").string());
}

ProcessResult Sandbox::run(const Faults& faults) const {
  ProcessResult result;
  result.exit_code = start(faults)->wait();
  result.err = err();
  return result;
}

std::string Sandbox::err() const {
  return io::read_file(dir_ / "err");
}

Fingerprint Sandbox::fingerprint() const {
  Fingerprint found;
  for (const fs::path& file : io::list_directory(output())) {
    const std::string name = file.filename().string();
    std::string& hash = found[name];
    if (name == "report.json") {
      hash = hash_of_report(file);
    } else if (name == "lcomp.json") {
      hash = hash_of_record(file);
    } else if (!name.starts_with("report.")) {
      hash = io::hash_of_file(file);
    }
  }
  return found;
}

std::vector<std::string> Sandbox::leftovers() const {
  std::vector<std::string> names;
  for (const fs::path& entry : io::list_directory(folder_)) {
    const std::string name = entry.filename().string();
    if (name != "model" && name != "out") names.push_back(name);
  }
  return names;
}

void Sandbox::clear() const {
  for (const fs::path& entry : io::list_directory(folder_)) {
    if (entry.filename() != "model") fs::remove_all(entry);
  }
  for (const char* name : {"log", "log.data"}) fs::remove(dir_ / name);
}

std::string difference(const Fingerprint& expected, const Fingerprint& found) {
  for (const auto& [name, hash] : expected) {
    const auto same = found.find(name);
    if (same == found.end()) return fmt::format("{} is missing", name);
    if (same->second != hash) return fmt::format("{} has other contents", name);
  }
  for (const auto& entry : found) {
    if (!expected.contains(entry.first)) return fmt::format("{} is not of the job", entry.first);
  }
  return "";
}

}  // namespace lcomp::test
