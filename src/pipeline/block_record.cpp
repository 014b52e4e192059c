#include "pipeline/block_record.h"

#include "io/json_util.h"
#include "lcomp/core/error.h"

namespace lcomp::pipeline {
namespace {

constexpr const char* kBlockRecord = "journal";

/// The rows travel in the report's own JSON.
std::string rows_to_json(const BlockRow& row, const std::vector<OperatorRow>& operators) {
  RunReport carrier;
  carrier.blocks = {row};
  carrier.operators = operators;
  return to_json(carrier);
}

}  // namespace

std::string BlockRecord::to_json() const {
  io::Json json;
  json["rows"] = rows_to_json(row, operators);
  json["decoded"] = decoded;
  json["changed"] = changed;
  json["widths"] = {widths.heads, widths.kv_heads, widths.intermediate};
  json["samples_hash"] = samples_hash;
  json["reference_hash"] = reference_hash;
  auto& all = json["groups"] = io::Json::object();
  for (const auto& [name, group] : groups) all[name] = group.to_json();
  return json.dump();
}

BlockRecord BlockRecord::from_json(const std::string& text) {
  const io::Json json = io::parse_json(text, kBlockRecord);
  const io::JsonView root(json, kBlockRecord);
  BlockRecord out;
  const RunReport carrier = pipeline::from_json(root.at("rows").text());
  if (carrier.blocks.size() != 1) root.fail("a block's record must hold one row of the block");
  out.row = carrier.blocks[0];
  out.operators = carrier.operators;
  for (const auto& [name, hash] : root.at("decoded").members()) out.decoded[name] = hash.text();
  for (const auto& [name, hash] : root.at("changed").members()) out.changed[name] = hash.text();
  for (const auto& [name, group] : root.at("groups").members())
    out.groups[name] = model::QuantizationConfig::Group::from_json(group.text(), kBlockRecord);
  const std::vector<int64_t> widths = root.at("widths").integers(1);
  if (widths.size() != 3) root.at("widths").fail("a block has three widths");
  out.widths = {widths[0], widths[1], widths[2]};
  out.samples_hash = root.at("samples_hash").text();
  out.reference_hash = root.at("reference_hash").text();
  return out;
}

std::string written_dense(const std::string& scheme) {
  return scheme.starts_with("dense") ? scheme : scheme + ", written dense";
}

void describe_as_dense(OperatorRow& row, int64_t bytes) {
  row.scheme = written_dense(row.scheme);
  row.bytes_after = bytes;
  row.bits_per_weight =
      8.0 * static_cast<double>(bytes) / static_cast<double>(row.out_features * row.in_features);
  row.parameters.reset();
  row.macs.reset();
}

}  // namespace lcomp::pipeline
