#pragma once

#include <catch2/catch.hpp>
#include <functional>
#include <string>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/model/model.h"
#include "support/test_data.h"

namespace lcomp::test {

/// Calls `check` with every golden model of a family that this version reads, and with the inputs and outputs
/// that the reference recorded. Returns how many there were; 0 (with a warning) without the shared data.
inline int64_t for_each_fixture_model(
    const std::function<void(const model::Model&, const io::SafetensorsFile& io)>& check) {
  const auto root = shared_data("golden/models");
  if (!root) {
    WARN("skipped: golden/models is not in LCOMP_TEST_DATA");
    return 0;
  }
  int64_t checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*root)) {
    if (!entry.is_directory()) continue;
    INFO("fixture " << entry.path().filename().string());
    std::optional<model::Model> model;
    try {
      model.emplace(model::Model::open(entry.path()));
    } catch (const Unsupported&) {
      continue;  // which ones may be refused is checked by tests/unit/model/fixtures_test.cpp
    }
    check(*model, io::SafetensorsFile(entry.path() / "io.safetensors"));
    ++checked;
  }
  return checked;
}

/// The rows of a fixture's input ids.
inline std::vector<std::vector<int64_t>> token_rows(const io::SafetensorsFile& io) {
  const at::Tensor ids = io.read("input_ids").contiguous();
  std::vector<std::vector<int64_t>> rows;
  for (int64_t b = 0; b < ids.size(0); ++b) {
    const int64_t* row = ids.data_ptr<int64_t>() + b * ids.size(1);
    rows.emplace_back(row, row + ids.size(1));
  }
  return rows;
}

}  // namespace lcomp::test
