// Columns of text for people.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace millrace::cli {

struct Column {
  std::string title;
  bool right = false;  // Numbers.
};

// A table with its titles, each line preceded by `indent`; without trailing spaces. Missing cells
// are empty. Width is counted in UTF-8 characters.
std::string RenderTable(const std::vector<Column>& columns,
                        const std::vector<std::vector<std::string>>& rows,
                        absl::string_view indent);

// "1,234,567".
std::string GroupDigits(uint64_t number);

// "2d 3h", "3h 12m", "4m 5s", "6s": the two most significant units.
std::string ShortDuration(int64_t seconds);

// "97.1%"; "-" for a negative ratio (nothing was counted).
std::string Percent(double ratio);

}  // namespace millrace::cli
