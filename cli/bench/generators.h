// The load generators, one file each. They print to standard output.
//
// Each returns InvalidArgument for a wrong command line, and another error when a file could not be
// read or differed from what it must be: the measurement is printed all the same, with the count.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace millrace::bench {

extern const absl::string_view kEpochUsage;
absl::Status RunEpoch(const std::vector<std::string>& arguments);

extern const absl::string_view kReadUsage;
absl::Status RunRead(const std::vector<std::string>& arguments);

extern const absl::string_view kStatUsage;
absl::Status RunStat(const std::vector<std::string>& arguments);

extern const absl::string_view kListUsage;
absl::Status RunList(const std::vector<std::string>& arguments);

extern const absl::string_view kMakeUsage;
absl::Status RunMake(const std::vector<std::string>& arguments);

extern const absl::string_view kDropUsage;
absl::Status RunDrop(const std::vector<std::string>& arguments);

}  // namespace millrace::bench
