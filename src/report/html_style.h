#pragma once

#include <string_view>

namespace lcomp::report {

/// The style sheet of the page. Colours are custom properties: the three ramps (h: errors, b: bits, d: ratios
/// around 1) run from "near the background" to "far from it" in light and in dark mode.
std::string_view page_style();

/// Tooltips from `title` attributes, sortable tables, and opening what is folded before printing. The page is
/// complete without it.
std::string_view page_script();

}  // namespace lcomp::report
