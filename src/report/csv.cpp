#include "lcomp/report/report.h"
#include "report/view.h"

namespace lcomp::report {
namespace {

/// Quoted where RFC 4180 asks for it.
std::string field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

std::string field(int64_t value) {
  return std::to_string(value);
}

/// The shortest text that reads back as the same number; empty when there is none.
std::string field(const std::optional<double>& value) {
  return value ? fmt::format("{}", *value) : std::string();
}

std::string line(const pipeline::OperatorRow& row) {
  const std::vector<std::string> fields = {field(row.name),
                                           field(row.kind),
                                           field(row.block),
                                           field(row.pass),
                                           field(row.method),
                                           field(row.scheme),
                                           field(row.out_features),
                                           field(row.in_features),
                                           field(row.bits_per_weight),
                                           field(row.bytes_before),
                                           field(row.bytes_after),
                                           field(row.weight_error),
                                           field(row.activation_error),
                                           field(row.max_abs_error),
                                           field(row.loss),
                                           field(row.rtn_loss),
                                           field(row.damping),
                                           field(row.rung),
                                           field(row.rung_index),
                                           row.fell_back ? "1" : "0",
                                           field(row.fallback),
                                           field(row.dead_columns),
                                           field(row.tokens),
                                           field(row.seconds)};
  return fmt::format("{}\r\n", fmt::join(fields, ","));
}

}  // namespace

std::string to_csv(const pipeline::RunReport& report) {
  std::string out =
      "name,kind,block,pass,method,scheme,out_features,in_features,bits_per_weight,bytes_before,bytes_after,"
      "weight_error,activation_error,max_abs_error,loss,rtn_loss,damping,rung,rung_index,fell_back,fallback,"
      "dead_columns,tokens,seconds\r\n";
  for (const auto& row : report.operators) out += line(row);
  return out;
}

}  // namespace lcomp::report
