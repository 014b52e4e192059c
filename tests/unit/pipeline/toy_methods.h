#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "lcomp/pipeline/method.h"

namespace lcomp::test {

enum class ToyRange { kMinMax, kMse };

/// Options with a field of every type.
struct ToyScheme {
  int64_t bits = 4;
  int64_t group_size = 0;
  bool symmetric = true;
  ToyRange range = ToyRange::kMinMax;

  void visit(FieldVisitor& v);
};

struct ToyTuning {
  double damping = 0.01;
  std::string order = "natural";

  void visit(FieldVisitor& v) {
    v.field("damping", damping, {0, 1}, "Share of the mean diagonal.");
    v.field("order", order, "Order of the columns.");
  }
};

using RtnToy = pipeline::PassOptionsOf<ToyScheme>;
using GptqToy = pipeline::PassOptionsOf<ToyScheme, ToyTuning>;

template <class Options>
pipeline::MethodInfo toy_method(const std::string& name, const std::string& summary, bool needs_calibration) {
  pipeline::MethodInfo method;
  method.name = name;
  method.summary = summary;
  method.needs_calibration = needs_calibration;
  method.default_options = [] { return std::make_unique<Options>(); };
  return method;
}

inline pipeline::MethodTable toy_methods() {
  pipeline::MethodTable table;
  table.add(toy_method<RtnToy>("rtn", "Rounds to nearest.", false));
  table.add(toy_method<GptqToy>("gptq", "Rounds and compensates.", true));
  return table;
}

}  // namespace lcomp::test

template <>
struct lcomp::EnumNames<lcomp::test::ToyRange> {
  static constexpr std::array<std::string_view, 2> names = {"min_max", "mse"};
};

inline void lcomp::test::ToyScheme::visit(FieldVisitor& v) {
  v.field("bits", bits, {2, 8}, "Bits per weight.");
  v.field("group_size", group_size, {0, 1 << 20}, "Columns | per scale.");
  v.field("symmetric", symmetric, "Without a zero point.");
  v.field("range", range, "How the range is found.");
}
