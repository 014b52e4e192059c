#include "pipeline/block_record.h"

#include "io/json_util.h"
#include "lcomp/core/error.h"

namespace lcomp::pipeline {
namespace {

constexpr const char* kWhere = "journal";

/// The rows travel in the report's own JSON.
std::string rows_to_json(const BlockRow& row, const std::vector<OperatorRow>& operators) {
  RunReport carrier;
  carrier.blocks = {row};
  carrier.operators = operators;
  return to_json(carrier);
}

io::Json scheme_to_json(const quant::QuantScheme& scheme) {
  return {{"bits", scheme.bits},
          {"symmetric", scheme.symmetric},
          {"granularity", std::string(name_of(scheme.granularity))},
          {"group_size", scheme.group_size}};
}

quant::QuantScheme scheme_from_json(const io::JsonView& json) {
  quant::QuantScheme scheme;
  scheme.bits = json.at("bits").integer(2, 8);
  scheme.symmetric = json.at("symmetric").boolean();
  scheme.group_size = json.at("group_size").integer(1);
  const std::string granularity = json.at("granularity").text();
  for (size_t i = 0; i < EnumNames<quant::Granularity>::names.size(); ++i) {
    if (granularity == EnumNames<quant::Granularity>::names[i])
      scheme.granularity = static_cast<quant::Granularity>(i);
  }
  return scheme;
}

}  // namespace

std::string BlockRecord::to_json() const {
  io::Json json;
  json["rows"] = rows_to_json(row, operators);
  json["decoded"] = decoded;
  json["changed"] = changed;
  json["samples_hash"] = samples_hash;
  auto& all = json["schemes"] = io::Json::object();
  for (const auto& [name, scheme] : schemes) all[name] = scheme_to_json(scheme);
  return json.dump();
}

BlockRecord BlockRecord::from_json(const std::string& text) {
  const io::Json json = io::parse_json(text, kWhere);
  const io::JsonView root(json, kWhere);
  BlockRecord out;
  const RunReport carrier = pipeline::from_json(root.at("rows").text());
  if (carrier.blocks.size() != 1) root.fail("a block's record must hold one row of the block");
  out.row = carrier.blocks[0];
  out.operators = carrier.operators;
  for (const auto& [name, hash] : root.at("decoded").members()) out.decoded[name] = hash.text();
  for (const auto& [name, hash] : root.at("changed").members()) out.changed[name] = hash.text();
  for (const auto& [name, scheme] : root.at("schemes").members())
    out.schemes[name] = scheme_from_json(scheme);
  out.samples_hash = root.at("samples_hash").text();
  return out;
}

}  // namespace lcomp::pipeline
