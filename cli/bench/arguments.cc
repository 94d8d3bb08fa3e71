#include "cli/bench/arguments.h"

#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/bench/report.h"
#include "common/base/status_macros.h"

namespace millrace::bench {

void AddNumber(base::FlagSet* flags, absl::string_view name, uint64_t* target, NumberRange range,
               absl::string_view help) {
  flags->Custom(
      name, "N",
      [target, range](absl::string_view value) {
        if (!absl::SimpleAtoi(value, target)) {
          return absl::InvalidArgumentError(absl::StrCat("\"", value, "\" is not a whole number"));
        }
        if (*target < range.min || *target > range.max) {
          return absl::InvalidArgumentError(
              absl::StrCat("it must be between ", range.min, " and ", range.max));
        }
        return absl::OkStatus();
      },
      help);
}

void AddChoice(base::FlagSet* flags, absl::string_view name, const std::string& first,
               const std::string& second, bool* target, absl::string_view help) {
  flags->Choice(
      name, {first, second}, [target](size_t index) { *target = index == 1; }, help);
}

absl::StatusOr<std::optional<std::vector<std::string>>> ParseOrHelp(
    base::FlagSet* flags, const std::vector<std::string>& arguments) {
  ASSIGN_OR_RETURN(const base::ParsedArguments parsed, flags->Parse(arguments));
  if (parsed.help) {
    std::fputs(flags->Help().c_str(), stdout);
    return std::nullopt;
  }
  RETURN_IF_ERROR(flags->Apply(parsed));
  return parsed.positionals;
}

absl::StatusOr<std::string> OnlyArgument(const std::vector<std::string>& positionals,
                                         absl::string_view what) {
  if (positionals.size() == 1) return positionals[0];
  return absl::InvalidArgumentError(
      absl::StrCat("takes exactly one ", what, ", got ", positionals.size(), "; see --help"));
}

}  // namespace millrace::bench
