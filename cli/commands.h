// The commands of `millrace`, one file each. Each takes the arguments after its name and returns
// the exit code: 0, 1 for what failed, 2 for wrong usage. Errors go to standard error as one line
// with cause and remedy; nothing is left half done.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace millrace::cli {

using Arguments = std::vector<std::string>;

int MountMain(const Arguments& arguments);
int UmountMain(const Arguments& arguments);
int WarmMain(const Arguments& arguments);
int EvictMain(const Arguments& arguments);
int StatusMain(const Arguments& arguments);
int UpgradeMain(const Arguments& arguments);
int WorkerMain(const Arguments& arguments);  // Returns only on failure.

// `mount` with a given keeper program, in the background: what MountMain does once it has found the
// program, apart for tests.
int MountInBackground(const std::string& program, const Arguments& arguments);

// The list of commands.
std::string HelpOfAll();
// "unknown command X; did you mean Y?"
std::string UnknownCommand(const std::string& word);

// Prints "millrace: <message>" to standard error unless `status` is OK; returns its exit code.
int Report(const absl::Status& status);

}  // namespace millrace::cli
