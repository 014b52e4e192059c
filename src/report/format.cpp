#include "report/format.h"

#include <array>

namespace lcomp::report {
namespace {

struct Unit {
  double size;
  std::string_view name;
};

std::string group_digits(std::string digits) {
  const size_t point = std::min(digits.find('.'), digits.size());
  const size_t first = !digits.empty() && digits[0] == '-' ? 1 : 0;
  for (size_t at = point; at > first + 3; at -= 3) digits.insert(at - 3, 1, ',');
  return digits;
}

/// True when the value has no digit other than zero behind so many decimals.
bool ends_within(double value, int decimals) {
  const double shifted = std::abs(value) * std::pow(10.0, decimals);
  return std::abs(shifted - std::round(shifted)) <= 1e-9 * shifted;
}

/// The value in the largest unit that leaves it at least 1; units go from large to small.
template <size_t N>
std::string in_units(double value, const std::array<Unit, N>& units, int digits) {
  for (const Unit& unit : units) {
    // Compared after rounding, so that 999.97 KB reads 1 MB.
    if (std::abs(value) >= unit.size * (1 - 0.5 * std::pow(10.0, -digits)) || unit.size == units.back().size)
      return fmt::format("{} {}", number(value / unit.size, digits), unit.name);
  }
  return {};
}

}  // namespace

std::string number(double value, int digits) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "infinite" : "-infinite";
  if (value == 0) return "0";
  const double magnitude = std::abs(value);
  if (magnitude >= 1e7 || magnitude < 1e-4) return fmt::format("{:.{}g}", value, std::max(1, digits - 2));
  // Digits before the point once rounded: 9.9999 is 10.00.
  const double rounded = std::stod(fmt::format("{:.{}e}", magnitude, digits - 1));
  const int leading = static_cast<int>(std::floor(std::log10(rounded))) + 1;
  int decimals = std::max(0, digits - leading);
  // 4.25 stays "4.25"; 11.02 in three digits is "11.0", whose zero says something.
  while (decimals > 0 && ends_within(value, decimals - 1)) --decimals;
  return group_digits(fmt::format("{:.{}f}", value, decimals));
}

std::string number(const std::optional<double>& value, int digits) {
  return value ? number(*value, digits) : std::string(kAbsent);
}

std::string exact(int64_t value) {
  return group_digits(std::to_string(value));
}

std::string count(int64_t value) {
  if (std::abs(static_cast<double>(value)) < 1e4) return exact(value);
  static constexpr std::array<Unit, 4> kUnits = {{{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "K"}}};
  return in_units(static_cast<double>(value), kUnits, 4);
}

std::string bytes(int64_t value) {
  static constexpr std::array<Unit, 5> kUnits = {
      {{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "KB"}, {1, "B"}}};
  return in_units(static_cast<double>(value), kUnits, 3);
}

std::string duration(double seconds) {
  if (!std::isfinite(seconds)) return number(seconds);
  if (seconds < 0.9995) return number(seconds * 1e3, seconds < 0.1 ? 2 : 3) + " ms";
  if (seconds < 59.95) return number(seconds, 3) + " s";
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  const int64_t minutes = static_cast<int64_t>(std::llround(seconds / 60));
  return fmt::format("{} h {:02} min", minutes / 60, minutes % 60);
}

std::string percent(double share, int digits) {
  return number(share * 100, digits) + " %";
}

std::string percent(const std::optional<double>& share, int digits) {
  return share ? percent(*share, digits) : std::string(kAbsent);
}

std::string change(double from, double to) {
  const double relative = to / from - 1;
  if (!std::isfinite(relative)) return std::string(kAbsent);
  return (relative < 0 ? "−" : "+") + percent(std::abs(relative), 3);
}

std::string utc_time(const std::string& iso) {
  if (iso.size() != 20 || iso[10] != 'T' || iso[19] != 'Z') return iso;
  return iso.substr(0, 10) + " " + iso.substr(11, 8) + " UTC";
}

std::string flops(double value) {
  static constexpr std::array<Unit, 5> kUnits = {
      {{1e15, "PFLOP"}, {1e12, "TFLOP"}, {1e9, "GFLOP"}, {1e6, "MFLOP"}, {1, "FLOP"}}};
  return in_units(value, kUnits, 3);
}

std::string base_name(std::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.find_last_of('/');
  return std::string(slash == std::string_view::npos || path.size() == 1 ? path : path.substr(slash + 1));
}

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '\n':
        out += "&#10;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string escape_markdown(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '\n':
        out += ' ';
        break;
      case '\r':
        break;
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '|':
      case '`':
      case '*':
      case '_':
      case '[':
      case ']':
      case '\\':
        out += '\\';
        [[fallthrough]];
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace lcomp::report
