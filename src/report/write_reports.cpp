#include "lcomp/io/files.h"
#include "lcomp/report/report.h"

namespace lcomp::report {

void write_reports(const std::filesystem::path& directory, const pipeline::RunReport& report) {
  io::write_file_atomic(directory / "report.json", pipeline::to_json(report));
  io::write_file_atomic(directory / "report.md", to_markdown(report));
  io::write_file_atomic(directory / "report.html", to_html(report));
}

}  // namespace lcomp::report
