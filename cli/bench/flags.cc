#include "cli/bench/flags.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::bench {
namespace {

absl::Status CheckRange(uint64_t value, Flags::Range range) {
  if (value >= range.min && value <= range.max) return absl::OkStatus();
  if (range.max == UINT64_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("must be ", range.min, " or more"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("must be between ", range.min, " and ", range.max));
}

}  // namespace

void Flags::Text(absl::string_view name, std::string* target) {
  options_[std::string(name)] = {.set = [target](const std::string& value) {
    *target = value;
    return absl::OkStatus();
  }};
}

void Flags::Number(absl::string_view name, uint64_t* target, Range range) {
  options_[std::string(name)] = {.set = [target, range](const std::string& value) {
    if (!absl::SimpleAtoi(value, target)) {
      return absl::InvalidArgumentError(absl::StrCat("\"", value, "\" is not a whole number"));
    }
    return CheckRange(*target, range);
  }};
}

void Flags::Bytes(absl::string_view name, uint64_t* target, Range range) {
  options_[std::string(name)] = {.set = [target, range](const std::string& value) -> absl::Status {
    ASSIGN_OR_RETURN(*target, base::ParseBytes(value));
    return CheckRange(*target, range);
  }};
}

void Flags::Time(absl::string_view name, absl::Duration* target) {
  options_[std::string(name)] = {.set = [target](const std::string& value) -> absl::Status {
    ASSIGN_OR_RETURN(*target, base::ParseDuration(value));
    return absl::OkStatus();
  }};
}

void Flags::Choice(absl::string_view name, std::string* target, std::vector<std::string> words) {
  options_[std::string(name)] = {
      .set = [target, words = std::move(words)](const std::string& value) {
        if (std::find(words.begin(), words.end(), value) == words.end()) {
          return absl::InvalidArgumentError(
              absl::StrCat("\"", value, "\" is none of ", absl::StrJoin(words, ", ")));
        }
        *target = value;
        return absl::OkStatus();
      }};
}

void Flags::Switch(absl::string_view name, bool* target) {
  options_[std::string(name)] = {.takes_value = false, .set = [target](const std::string&) {
                                   *target = true;
                                   return absl::OkStatus();
                                 }};
}

absl::StatusOr<std::vector<std::string>> Flags::Parse(
    const std::vector<std::string>& arguments) const {
  std::vector<std::string> positional;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const absl::string_view argument = arguments[i];
    if (argument == "--") {
      positional.insert(positional.end(), arguments.begin() + i + 1, arguments.end());
      break;
    }
    if (argument.size() < 2 || argument[0] != '-') {
      positional.emplace_back(argument);
      continue;
    }
    const size_t equals = argument.find('=');
    const absl::string_view dashed = argument.substr(0, equals);
    const auto option =
        dashed.substr(0, 2) == "--" ? options_.find(dashed.substr(2)) : options_.end();
    if (option == options_.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown option ", dashed, "; --help lists the options"));
    }
    std::string value;
    if (equals != absl::string_view::npos) {
      if (!option->second.takes_value) {
        return absl::InvalidArgumentError(absl::StrCat(dashed, " takes no value"));
      }
      value = std::string(argument.substr(equals + 1));
    } else if (option->second.takes_value) {
      if (i + 1 == arguments.size()) {
        return absl::InvalidArgumentError(absl::StrCat(dashed, " needs a value"));
      }
      value = arguments[++i];
    }
    if (const absl::Status status = option->second.set(value); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(dashed, ": ", status.message()));
    }
  }
  return positional;
}

}  // namespace millrace::bench
