// What the load generators' options need beyond base::FlagSet.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/base/flags.h"

namespace millrace::bench {

struct NumberRange {
  uint64_t min = 0;
  uint64_t max = UINT64_MAX;
};

// Declares a whole number: seeds and counts use all 64 bits.
void AddNumber(base::FlagSet* flags, absl::string_view name, uint64_t* target, NumberRange range,
               absl::string_view help);

// Declares a word that picks one of two; `target` is true for the second.
void AddChoice(base::FlagSet* flags, absl::string_view name, const std::string& first,
               const std::string& second, bool* target, absl::string_view help);

// Sets the targets and returns the positional arguments; nullopt when --help was asked for, and
// printed. InvalidArgument for a wrong command line.
absl::StatusOr<std::optional<std::vector<std::string>>> ParseOrHelp(
    base::FlagSet* flags, const std::vector<std::string>& arguments);

// The single positional argument `what` ("DIR").
absl::StatusOr<std::string> OnlyArgument(const std::vector<std::string>& positionals,
                                         absl::string_view what);

}  // namespace millrace::bench
