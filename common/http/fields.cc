#include "common/http/fields.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/time/civil_time.h"

namespace millrace::http {
namespace {

bool IsUnreserved(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_' ||
         c == '~';
}

std::string Encode(absl::string_view text, bool keep_slash) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size() + 16);
  for (const char c : text) {
    if (IsUnreserved(c) || (keep_slash && c == '/')) {
      encoded.push_back(c);
    } else {
      const auto byte = static_cast<unsigned char>(c);
      encoded.push_back('%');
      encoded.push_back(kDigits[byte >> 4]);
      encoded.push_back(kDigits[byte & 15]);
    }
  }
  return encoded;
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> Decode(absl::string_view text, bool plus_is_space) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      decoded.push_back(' ');
    } else if (text[i] != '%') {
      decoded.push_back(text[i]);
    } else {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = HexValue(text[i + 1]);
      const int low = HexValue(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      decoded.push_back(static_cast<char>(high * 16 + low));
      i += 2;
    }
  }
  return decoded;
}

// The number of fixed width at text[at]; -1 unless all are digits.
int FixedNumber(absl::string_view text, size_t at, size_t width) {
  if (at + width > text.size()) return -1;
  int value = 0;
  for (size_t i = at; i < at + width; ++i) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(text[i]))) return -1;
    value = value * 10 + (text[i] - '0');
  }
  return value;
}

std::optional<absl::Time> FromFields(int year, int month, int day, absl::string_view text,
                                     size_t time_at) {
  const int hour = FixedNumber(text, time_at, 2);
  const int minute = FixedNumber(text, time_at + 3, 2);
  const int second = FixedNumber(text, time_at + 6, 2);
  if (year < 0 || month < 1 || month > 12 || day < 1 || day > 31 || hour < 0 || hour > 23 ||
      minute < 0 || minute > 59 || second < 0 || second > 60) {
    return std::nullopt;
  }
  return absl::FromCivil(absl::CivilSecond(year, month, day, hour, minute, second),
                         absl::UTCTimeZone());
}

// Digits only: absl's own parser would also take signs and spaces.
bool ParseDigits(absl::string_view text, uint64_t* value) {
  return !text.empty() && absl::ascii_isdigit(static_cast<unsigned char>(text.front())) &&
         absl::SimpleAtoi(text, value);
}

}  // namespace

std::string PercentEncode(absl::string_view text) { return Encode(text, false); }

std::string PercentEncodePath(absl::string_view path) { return Encode(path, true); }

std::optional<std::string> PercentDecode(absl::string_view text) { return Decode(text, false); }

std::optional<std::string> FormDecode(absl::string_view text) { return Decode(text, true); }

std::optional<absl::Time> ParseHttpDate(absl::string_view text) {
  constexpr std::array<absl::string_view, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  text = absl::StripAsciiWhitespace(text);
  if (text.size() != 29 || !absl::EndsWith(text, " GMT")) return std::nullopt;
  const auto* const month = std::find(kMonths.begin(), kMonths.end(), text.substr(8, 3));
  if (month == kMonths.end()) return std::nullopt;
  return FromFields(FixedNumber(text, 12, 4), static_cast<int>(month - kMonths.begin()) + 1,
                    FixedNumber(text, 5, 2), text, 17);
}

std::optional<absl::Time> ParseIsoTime(absl::string_view text) {
  if (text.size() < 20 || text[10] != 'T' || text.back() != 'Z') return std::nullopt;
  std::optional<absl::Time> time = FromFields(FixedNumber(text, 0, 4), FixedNumber(text, 5, 2),
                                              FixedNumber(text, 8, 2), text, 11);
  if (time.has_value() && text[19] == '.') {
    int64_t unit_ns = 100'000'000;
    for (size_t i = 20; i + 1 < text.size() && unit_ns > 0; ++i, unit_ns /= 10) {
      const int digit = FixedNumber(text, i, 1);
      if (digit < 0) return std::nullopt;
      *time += absl::Nanoseconds(digit * unit_ns);
    }
  }
  return time;
}

std::optional<absl::Duration> ParseRetryAfter(absl::string_view text, absl::Time now) {
  text = absl::StripAsciiWhitespace(text);
  uint64_t seconds = 0;
  if (ParseDigits(text, &seconds)) {
    return absl::Seconds(static_cast<int64_t>(std::min<uint64_t>(seconds, 1u << 30)));
  }
  const std::optional<absl::Time> date = ParseHttpDate(text);
  if (!date.has_value()) return std::nullopt;
  return std::max(*date - now, absl::ZeroDuration());
}

std::optional<ContentRange> ParseContentRange(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  if (!absl::StartsWithIgnoreCase(text, "bytes ")) return std::nullopt;
  text.remove_prefix(6);
  const size_t dash = text.find('-');
  const size_t slash = text.find('/');
  if (dash == absl::string_view::npos || slash == absl::string_view::npos || slash < dash) {
    return std::nullopt;
  }
  ContentRange range;
  if (!ParseDigits(text.substr(0, dash), &range.first) ||
      !ParseDigits(text.substr(dash + 1, slash - dash - 1), &range.last) ||
      range.last < range.first) {
    return std::nullopt;
  }
  const absl::string_view total = text.substr(slash + 1);
  if (total != "*") {
    uint64_t bytes = 0;
    if (!ParseDigits(total, &bytes) || bytes <= range.last) return std::nullopt;
    range.total = bytes;
  }
  return range;
}

}  // namespace millrace::http
