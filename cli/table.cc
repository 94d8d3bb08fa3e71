#include "cli/table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::cli {
namespace {

size_t WidthOf(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

void AppendRow(const std::vector<Column>& columns, const std::vector<size_t>& widths,
               const std::vector<std::string>& cells, absl::string_view indent, std::string* out) {
  std::string line(indent);
  for (size_t i = 0; i < columns.size(); ++i) {
    const absl::string_view cell = i < cells.size() ? absl::string_view(cells[i]) : "";
    const std::string padding(widths[i] - WidthOf(cell), ' ');
    absl::StrAppend(&line, i == 0 ? "" : "  ", columns[i].right ? padding : "", cell,
                    columns[i].right ? "" : padding);
  }
  line.erase(line.find_last_not_of(' ') + 1);
  absl::StrAppend(out, line, "\n");
}

}  // namespace

std::string RenderTable(const std::vector<Column>& columns,
                        const std::vector<std::vector<std::string>>& rows,
                        absl::string_view indent) {
  std::vector<size_t> widths;
  std::vector<std::string> titles;
  for (size_t i = 0; i < columns.size(); ++i) {
    size_t width = WidthOf(columns[i].title);
    for (const std::vector<std::string>& row : rows) {
      if (i < row.size()) width = std::max(width, WidthOf(row[i]));
    }
    widths.push_back(width);
    titles.push_back(columns[i].title);
  }
  std::string out;
  AppendRow(columns, widths, titles, indent, &out);
  for (const std::vector<std::string>& row : rows) AppendRow(columns, widths, row, indent, &out);
  return out;
}

std::string GroupDigits(uint64_t number) {
  const std::string digits = absl::StrCat(number);
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped.push_back(',');
    grouped.push_back(digits[i]);
  }
  return grouped;
}

std::string ShortDuration(int64_t seconds) {
  seconds = std::max<int64_t>(seconds, 0);
  const int64_t days = seconds / 86400;
  const int64_t hours = seconds / 3600 % 24;
  const int64_t minutes = seconds / 60 % 60;
  if (days > 0) return absl::StrCat(days, "d ", hours, "h");
  if (hours > 0) return absl::StrCat(hours, "h ", minutes, "m");
  if (minutes > 0) return absl::StrCat(minutes, "m ", seconds % 60, "s");
  return absl::StrCat(seconds, "s");
}

std::string Percent(double ratio) {
  return ratio < 0 ? "-" : absl::StrFormat("%.1f%%", ratio * 100);
}

}  // namespace millrace::cli
