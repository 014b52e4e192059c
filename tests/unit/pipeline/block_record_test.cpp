#include "pipeline/block_record.h"

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"

using namespace lcomp;
using pipeline::BlockRecord;

namespace {

BlockRecord sample() {
  BlockRecord record;
  record.row.block = 3;
  record.row.solve_seconds = 1.5;
  pipeline::OperatorRow op;
  op.name = "model.layers.3.mlp.up_proj";
  op.pass = 1;
  op.loss = 0.25;
  record.operators = {op};
  record.decoded[op.name] = "abc";
  record.changed["model.layers.3.input_layernorm.weight"] = "def";
  record.groups[op.name].scheme = {
      .bits = 3, .symmetric = false, .granularity = quant::Granularity::kChannel};
  record.widths = {4, 2, 96};
  record.samples_hash = "def";
  record.reference_hash = "ghi";
  return record;
}

}  // namespace

TEST_CASE("the record of a block comes back from the journal as it was", "[pipeline][journal]") {
  const BlockRecord record = sample();
  const BlockRecord back = BlockRecord::from_json(record.to_json());
  REQUIRE(back.row == record.row);
  REQUIRE((back.operators == record.operators));
  REQUIRE(back.decoded == record.decoded);
  REQUIRE(back.changed == record.changed);
  REQUIRE(back.widths == record.widths);
  REQUIRE(back.samples_hash == record.samples_hash);
  REQUIRE(back.reference_hash == record.reference_hash);
  REQUIRE(back.groups.size() == 1);
  REQUIRE(back.groups.begin()->second.to_json() == record.groups.begin()->second.to_json());
}

TEST_CASE("a record without the row of its block is refused", "[pipeline][journal]") {
  auto json = nlohmann::json::parse(sample().to_json());
  json["rows"] = pipeline::to_json(pipeline::RunReport{});
  const auto call = [&] { BlockRecord::from_json(json.dump()); };
  REQUIRE_THROWS_AS(call(), CorruptFile);
  REQUIRE(test::error_text(call) == "[journal] a block's record must hold one row of the block");
}
