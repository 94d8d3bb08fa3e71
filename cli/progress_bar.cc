#include "cli/progress_bar.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/table.h"
#include "common/base/units.h"

namespace millrace::cli {
namespace {

// Wider bars say no more.
constexpr int kBarMax = 40;
constexpr int kBarMin = 10;

// By bytes; by files where all of them are empty.
double Share(const control::WarmProgress& progress) {
  const auto share = [](uint64_t done, uint64_t total) {
    return std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  };
  if (progress.bytes_total > 0) return share(progress.bytes_done, progress.bytes_total);
  if (progress.files_total > 0) return share(progress.files_done, progress.files_total);
  return 1;
}

std::string TimeLeft(const control::WarmProgress& progress) {
  if (!progress.total_known || !(progress.bytes_per_second > 0) ||
      progress.bytes_done >= progress.bytes_total) {
    return "";
  }
  const double seconds =
      static_cast<double>(progress.bytes_total - progress.bytes_done) / progress.bytes_per_second;
  // A rate near nothing makes a time beyond any use.
  if (seconds > 100.0 * 86400) return "";
  return absl::StrCat("  ", ShortDuration(static_cast<int64_t>(std::ceil(seconds))), " left");
}

}  // namespace

std::string ProgressText(const control::WarmProgress& progress, absl::string_view things) {
  const absl::string_view of = progress.total_known ? " of " : " of at least ";
  std::string text = absl::StrCat(
      base::FormatBytes(progress.bytes_done), of, base::FormatBytes(progress.bytes_total), "  ",
      GroupDigits(progress.files_done), " of ", GroupDigits(progress.files_total), " ", things);
  if (progress.bytes_per_second >= 1) {
    absl::StrAppend(&text, "  ",
                    base::FormatBytes(static_cast<uint64_t>(progress.bytes_per_second)), "/s");
  }
  absl::StrAppend(&text, TimeLeft(progress));
  if (progress.files_failed > 0) {
    absl::StrAppend(&text, "  ", GroupDigits(progress.files_failed), " failed");
  }
  return text;
}

std::string ProgressLine(const control::WarmProgress& progress, absl::string_view things,
                         int columns) {
  const std::string text = ProgressText(progress, things);
  if (!progress.total_known) return text;
  const double share = Share(progress);
  // 100% is said when everything is done, not when it is nearly so.
  const int percent = static_cast<int>(std::floor(share * 100));
  std::string facts = absl::StrFormat("%3d%%  %s", percent, text);
  // "[", "]" and two spaces around the bar.
  const int room = std::min(columns - static_cast<int>(facts.size()) - 4, kBarMax);
  if (room < kBarMin) return facts;
  const int filled = static_cast<int>(std::floor(share * room));
  std::string bar(static_cast<size_t>(filled), '=');
  if (filled < room) bar.push_back('>');
  bar.resize(static_cast<size_t>(room), ' ');
  return absl::StrCat("[", bar, "] ", facts);
}

}  // namespace millrace::cli
