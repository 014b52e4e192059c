#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

std::optional<double> RooflineRow::achieved_gflops() const {
  if (!(seconds > 0)) return std::nullopt;
  return flops / seconds / 1e9;
}

std::optional<double> RooflineRow::share() const {
  const auto achieved = achieved_gflops();
  if (!achieved || !(peak_gflops > 0)) return std::nullopt;
  return *achieved / peak_gflops;
}

}  // namespace lcomp::pipeline
