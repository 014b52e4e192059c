#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>

#include "lcomp/core/options.h"

namespace lcomp::quant {

/// What the code of a quantized weight stands for, before the scale.
enum class NumberFormat {
  kInt,      ///< the integer itself, of 2 to 8 bits
  kNf4,      ///< one of 16 values that suit normally distributed weights (Dettmers et al., QLoRA, 2023)
  kFp8E4m3,  ///< an 8-bit floating-point number: 4 bits exponent, 3 bits mantissa, no infinity (OCP, 2023)
};

/// The values of NF4, ascending: quantiles of the normal distribution, with 0 and +-1 among them. float32
/// numbers, as bitsandbytes has them.
inline constexpr std::array<double, 16> kNf4Values = {
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
};

/// The largest finite number of E4M3.
inline constexpr double kFp8Largest = 448;

/// The number that an E4M3 byte stands for; NaN for 0x7F and 0xFF.
double fp8_e4m3_value(uint8_t code);

/// The E4M3 byte nearest to a finite number: halves to even, saturating at +-448, the sign of zero kept.
uint8_t fp8_e4m3_code(double value);

/// The code of the NF4 value nearest to a number in [-1, 1]; halves to the smaller one, as bitsandbytes.
uint8_t nf4_code(double value);

/// What int8 codes of a format stand for, as a tensor of `type` (float32 or float64), exact: the integers
/// themselves, NF4 values of the codes 0 to 15, or E4M3 numbers whose bytes the codes are.
at::Tensor code_values(const at::Tensor& codes, NumberFormat format, at::ScalarType type);

}  // namespace lcomp::quant

namespace lcomp {

template <>
struct EnumNames<quant::NumberFormat> {
  static constexpr std::array<std::string_view, 3> names = {"int", "nf4", "fp8_e4m3"};
};

}  // namespace lcomp
