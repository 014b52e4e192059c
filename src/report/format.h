#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// Numbers and text for people. What a report rounds here stays exact in report.json.
namespace lcomp::report {

/// Shown where a number was not measured.
inline constexpr std::string_view kAbsent = "–";

/// `digits` significant digits without exponent where that stays short: "20.71", "0.0612", "1.2e-07",
/// "135,000". "NaN" and "infinite" for what is not finite.
std::string number(double value, int digits = 4);
std::string number(const std::optional<double>& value, int digits = 4);

/// All digits, in groups of three: "134,515,008".
std::string exact(int64_t value);

/// "134.5 M", "1.235 B"; exact below ten thousand.
std::string count(int64_t value);

/// Decimal units: "269 MB", "1.93 KB", "512 B".
std::string bytes(int64_t value);

/// "43 ms", "12.3 s", "4 min 31 s", "1 h 02 min".
std::string duration(double seconds);

/// 0.6312 -> "63.1 %".
std::string percent(double share, int digits = 3);
std::string percent(const std::optional<double>& share, int digits = 3);

/// Relative change with its sign: 0.252 -> "+25.2 %".
std::string change(double from, double to);

/// "2024-05-01T12:00:00Z" -> "2024-05-01 12:00:00 UTC"; other text as it is.
std::string utc_time(const std::string& iso);

/// "14.2 TFLOP".
std::string flops(double value);

/// The last component of a path: the name by which people know a model or a file.
std::string base_name(std::string_view path);

/// Escapes text for HTML content and attribute values in either kind of quotes. A newline becomes `&#10;`, so
/// that it survives in attributes.
std::string escape_html(std::string_view text);

/// Escapes text for a cell of a Markdown table: pipes, HTML, code and emphasis marks, newlines.
std::string escape_markdown(std::string_view text);

}  // namespace lcomp::report
