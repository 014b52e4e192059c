#include "lcomp/pipeline/verify.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/failure.h"

namespace lcomp::cli {
namespace {

std::string errors_text(const pipeline::OutputCheck& check) {
  if (!check.not_compared.empty()) return fmt::format("weight errors not compared: {}\n", check.not_compared);
  const std::string left =
      check.errors_left == 0
          ? ""
          : fmt::format("; {} behind several passes, moved scales or deleted units not compared",
                        check.errors_left);
  return fmt::format("{} weight errors against the source are as reported{}\n", check.errors_compared, left);
}

}  // namespace

Command verify_command() {
  const auto directory = std::make_shared<std::string>();
  const auto against = std::make_shared<std::string>();
  Command command;
  command.name = "verify";
  command.summary = "Check an output of run against its record: every file and every tensor";
  command.declare = [directory, against](CLI::App& app) {
    app.add_option("DIR", *directory, "Directory that `lcomp run` wrote")->required();
    app.add_option("--against", *against,
                   "Model that it was made from, for its weight errors; by default where the record says");
  };
  command.run = [directory, against](const CommonOptions&, Observer& observer) {
    const pipeline::OutputCheck result = pipeline::verify(*directory, observer, *against);
    Answer answer;
    answer.text = result.passed
                      ? fmt::format("{}: as written ({} tensors decoded, {} compared, {} files hashed)\n{}",
                                    *directory, result.tensors_decoded, result.tensors_compared,
                                    result.files_hashed, errors_text(result))
                      : fmt::format("{}: NOT as written: {}\n", *directory, result.message);
    answer.json = {{"passed", result.passed},
                   {"tensors_decoded", result.tensors_decoded},
                   {"tensors_compared", result.tensors_compared},
                   {"files_hashed", result.files_hashed},
                   {"errors_compared", result.errors_compared},
                   {"errors_left", result.errors_left},
                   {"not_compared", result.not_compared},
                   {"seconds", result.seconds},
                   {"message", result.message}};
    answer.exit_code = result.passed ? kDone : kBadInput;
    return answer;
  };
  return command;
}

}  // namespace lcomp::cli
