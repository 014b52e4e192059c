#include "lcomp/quant/number_format.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace lcomp::quant {
namespace {

constexpr int kBias = 7;
constexpr int kMantissaBits = 3;

/// The codes' values through a table with an entry for every byte.
template <class Number, class Value>
at::Tensor looked_up(const at::Tensor& codes, at::ScalarType type, const Value& value) {
  std::array<Number, 256> table{};
  for (int byte = 0; byte < 256; ++byte)
    table[static_cast<size_t>(byte)] = static_cast<Number>(value(static_cast<uint8_t>(byte)));
  const at::Tensor in = codes.contiguous();
  at::Tensor out = at::empty(in.sizes(), type);
  const int8_t* from = in.data_ptr<int8_t>();
  std::transform(from, from + in.numel(), out.data_ptr<Number>(),
                 [&](int8_t code) { return table[static_cast<uint8_t>(code)]; });
  return out;
}

}  // namespace

double fp8_e4m3_value(uint8_t code) {
  const int magnitude = code & 0x7F, exponent = magnitude >> kMantissaBits, mantissa = magnitude & 7;
  if (magnitude == 0x7F) return std::numeric_limits<double>::quiet_NaN();
  // Exponent 0 has no leading one and the step of exponent 1.
  const int significand = exponent == 0 ? mantissa : mantissa + (1 << kMantissaBits);
  const double value = std::ldexp(significand, std::max(exponent, 1) - kBias - kMantissaBits);
  return (code & 0x80) != 0 ? -value : value;
}

uint8_t fp8_e4m3_code(double value) {
  const int sign = std::signbit(value) ? 0x80 : 0;
  const double magnitude = std::min(std::abs(value), kFp8Largest);
  const int exponent = magnitude == 0 ? 1 - kBias : std::max(std::ilogb(magnitude), 1 - kBias);
  // Steps of this exponent; 16 of them are 8 of the next, which the addition carries over.
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, kMantissaBits - exponent)));
  return static_cast<uint8_t>(sign | (((exponent + kBias - 1) << kMantissaBits) + steps));
}

uint8_t nf4_code(double value) {
  uint8_t code = 0;
  while (code < 15 && value > (kNf4Values[code] + kNf4Values[code + 1u]) / 2) ++code;
  return code;
}

at::Tensor code_values(const at::Tensor& codes, NumberFormat format, at::ScalarType type) {
  const auto through = [&](auto value) {
    return type == at::kDouble ? looked_up<double>(codes, type, value) : looked_up<float>(codes, type, value);
  };
  switch (format) {
    case NumberFormat::kNf4:
      return through([](uint8_t code) { return kNf4Values[code & 15u]; });
    case NumberFormat::kFp8E4m3:
      return through(fp8_e4m3_value);
    case NumberFormat::kInt:
      break;
  }
  return codes.to(type);
}

}  // namespace lcomp::quant
