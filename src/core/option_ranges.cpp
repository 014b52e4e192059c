#include "lcomp/core/option_ranges.h"

#include <fmt/format.h>

#include <cmath>

#include "lcomp/core/error.h"

namespace lcomp {
namespace {

class RangeCheck final : public FieldVisitor {
 public:
  explicit RangeCheck(std::string_view where) : where_(where) {}

  void field(std::string_view, bool&, std::string_view) override {}
  void field(std::string_view name, int64_t& value, Range range, std::string_view) override {
    check(name, static_cast<double>(value), range);
  }
  void field(std::string_view name, double& value, Range range, std::string_view) override {
    check(name, value, range);
  }
  void field(std::string_view, std::string&, std::string_view) override {}
  void field(std::string_view, std::vector<std::string>&, std::string_view) override {}
  void choice(std::string_view, size_t&, const std::vector<std::string_view>&, std::string_view) override {}
  void object(std::string_view, std::string_view, const std::function<void(FieldVisitor&)>& visit) override {
    visit(*this);
  }

 private:
  void check(std::string_view name, double value, Range range) const {
    if (value >= range.min && value <= range.max) return;
    const std::string bounds = std::isinf(range.max) ? fmt::format("at least {}", range.min)
                                                     : fmt::format("in [{}, {}]", range.min, range.max);
    throw InvalidArgument(std::string(where_),
                          fmt::format("{} must be {}; received {}", name, bounds, value));
  }

  std::string_view where_;
};

}  // namespace

void check_ranges(const std::function<void(FieldVisitor&)>& visit, std::string_view where) {
  RangeCheck check(where);
  visit(check);
}

}  // namespace lcomp
