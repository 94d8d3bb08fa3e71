// The commands of `millrace worker`, one file each; as those of cli/commands.h.
#pragma once

#include "cli/commands.h"

namespace millrace::cli {

int WorkerStatusMain(const Arguments& arguments);
int WorkerDrainMain(const Arguments& arguments);
int WorkerLoadMain(const Arguments& arguments);
int WorkerEvictMain(const Arguments& arguments);

// `arguments` begin with the command's name.
int WorkerCtlMain(const Arguments& arguments);

}  // namespace millrace::cli
