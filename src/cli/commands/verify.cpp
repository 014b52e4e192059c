#include "lcomp/pipeline/verify.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/failure.h"

namespace lcomp::cli {

Command verify_command() {
  const auto directory = std::make_shared<std::string>();
  Command command;
  command.name = "verify";
  command.summary = "Check an output of run against its record: every file and every tensor";
  command.declare = [directory](CLI::App& app) {
    app.add_option("DIR", *directory, "Directory that `lcomp run` wrote")->required();
  };
  command.run = [directory](const CommonOptions&, Observer& observer) {
    const pipeline::Verification result = pipeline::verify(*directory, observer);
    Answer answer;
    answer.text =
        result.passed
            ? fmt::format("{}: as written ({} tensors decoded, {} compared, {} files hashed)\n", *directory,
                          result.tensors_decoded, result.tensors_compared, result.files_hashed)
            : fmt::format("{}: NOT as written: {}\n", *directory, result.message);
    answer.json = {{"passed", result.passed},
                   {"tensors_decoded", result.tensors_decoded},
                   {"tensors_compared", result.tensors_compared},
                   {"files_hashed", result.files_hashed},
                   {"seconds", result.seconds},
                   {"message", result.message}};
    answer.exit_code = result.passed ? kDone : kBadInput;
    return answer;
  };
  return command;
}

}  // namespace lcomp::cli
