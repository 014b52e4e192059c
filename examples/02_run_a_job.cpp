// Runs a job from C++: the same call that `lcomp run` makes. The job is made in code here; `load_job` reads a
// file.
//
//   example_02_run_a_job EXAMPLES_FOLDER

#include <cstdio>
#include <filesystem>
#include <string>

#include "lcomp/lcomp.h"

int main(int argc, char** argv) try {
  const std::string data = argc > 1 ? argv[1] : "examples";
  const std::filesystem::path output = "quantized";
  std::filesystem::remove_all(output);

  const std::string text = R"({
    "model": ")" + data + R"(/model",
    "output": ")" + output.string() +
                           R"(",
    "calibration": { "text": ")" +
                           data + R"(/text/kjv-calib.txt", "samples": 8, "length": 256, "starts": 32 },
    "passes": [ { "method": "gptq", "bits": 4, "group_size": 64 } ],
    "evaluate": { "text": ")" +
                           data +
                           R"(/text/kjv-eval.txt", "window": 256, "max_windows": 16, "reference": true }
  })";
  const auto methods = lcomp::pipeline::builtin_methods();
  const auto job = lcomp::pipeline::parse_job(text, "example job", methods);

  lcomp::Observer silent;  // derive from it to see progress, or to stop a run
  const auto report = lcomp::pipeline::run(job, methods, silent, lcomp::report::write_reports);

  std::printf("%zu operators, %.2f -> %.2f MB, verified: %s\n", report.operators.size(),
              1e-6 * static_cast<double>(report.totals.bytes_before),
              1e-6 * static_cast<double>(report.totals.bytes_after),
              report.verification->passed ? "yes" : "no");
  for (const auto& row : report.evaluation) {
    std::printf("%-10s perplexity %.3f\n", row.model.c_str(), row.perplexity.value_or(0));
  }
  return report.verification->passed ? 0 : 1;
} catch (const lcomp::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
