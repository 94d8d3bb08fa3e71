// How a daemon of a mount is started: its arguments and its environment, as they were when the
// mount was made. In a sealed memory file, which the daemons hold too: a keeper that adopts one
// starts its successors as the first keeper would have, credentials in the environment included.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace millrace::keeper {

struct Recipe {
  std::vector<std::string> arguments;    // After the program's name; of options::ToArguments.
  std::vector<std::string> environment;  // NAME=VALUE.
};

absl::StatusOr<base::UniqueFd> WriteRecipe(const Recipe& recipe);
// InvalidArgument for what WriteRecipe did not write as this user. It comes from a daemon, which
// must not choose what its keeper starts: nobody else can make a file of ours, or change a sealed
// one.
absl::StatusOr<Recipe> ReadRecipe(int memfd);

// The environment of this process.
std::vector<std::string> CurrentEnvironment();
// REQUIRES: no other thread runs.
void ReplaceEnvironment(const std::vector<std::string>& environment);

}  // namespace millrace::keeper
