#pragma once

#include <filesystem>
#include <string>

#include "lcomp/pipeline/report_data.h"

namespace lcomp::report {

/// The report for people who read it in a terminal or a merge request.
std::string to_markdown(const pipeline::RunReport& report);

/// The report as one self-contained page: no network, no fonts or scripts from elsewhere, light and dark,
/// printable. Everything that came from files is escaped.
std::string to_html(const pipeline::RunReport& report);

/// The operator rows as a table (RFC 4180), one line per row and a header line; absent values are empty.
std::string to_csv(const pipeline::RunReport& report);

/// Writes `report.json`, `report.md` and `report.html` into `directory`, each replaced in one
/// rename. Cheap enough to call after every block. Throws `ResourceError` naming the file.
void write_reports(const std::filesystem::path& directory, const pipeline::RunReport& report);

}  // namespace lcomp::report
