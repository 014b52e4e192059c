#include <algorithm>

#include "io/json_util.h"
#include "lcomp/eval/latency.h"
#include "lcomp/io/files.h"

namespace lcomp::eval {

std::string to_json(const LatencyTable& table) {
  const io::OrderedJson json = {
      {"attention", table.attention}, {"mlp_widths", table.mlp_widths}, {"mlp", table.mlp}};
  return json.dump(1) + "\n";
}

LatencyTable read_latency_table(const std::filesystem::path& file) {
  const io::Json json = io::parse_json(io::read_file(file), file.string());
  const io::JsonView root(json, file.string());
  LatencyTable table;
  table.attention = root.at("attention").numbers();
  table.mlp_widths = root.at("mlp_widths").integers(0);
  table.mlp = root.at("mlp").numbers();
  const auto rising = [](const std::vector<int64_t>& widths) {
    return std::adjacent_find(widths.begin(), widths.end(), std::greater_equal<>()) == widths.end();
  };
  const auto are_seconds = [](const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double s) { return s >= 0; });
  };
  if (table.mlp_widths.size() < 2 || table.mlp_widths.front() != 0 || !rising(table.mlp_widths))
    root.at("mlp_widths").fail("must ascend from 0 to the width of the model");
  if (table.mlp.size() != table.mlp_widths.size() || !are_seconds(table.mlp))
    root.at("mlp").fail("must hold the seconds of each of mlp_widths");
  if (table.attention.size() < 2 || !are_seconds(table.attention))
    root.at("attention").fail("must hold the seconds with no, one, two ... groups of heads");
  return table;
}

}  // namespace lcomp::eval
