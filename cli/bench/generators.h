// The load generators, one file each. They print to standard output; --help explains each.
//
// Each returns InvalidArgument for a wrong command line, and another error when a file could not be
// read or differed from what it must be: the measurement is printed all the same, with the count.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace millrace::bench {

absl::Status RunEpoch(const std::vector<std::string>& arguments);
absl::Status RunRead(const std::vector<std::string>& arguments);
absl::Status RunStat(const std::vector<std::string>& arguments);
absl::Status RunList(const std::vector<std::string>& arguments);
absl::Status RunMake(const std::vector<std::string>& arguments);
absl::Status RunSoak(const std::vector<std::string>& arguments);
absl::Status RunDrop(const std::vector<std::string>& arguments);

}  // namespace millrace::bench
