// What a process that serves strangers gives up for good before it reads a stranger's first byte.
//
// A seccomp filter takes the system calls that it never makes and that turn a bug in it
// into a foothold: programs to start, other processes to look into, mounts and namespaces, the
// kernel's rarely used corners. They fail with EPERM. Everything else passes. The filter itself
// does not run for those, as the kernel keeps a table of the calls that are always allowed
// (Linux 5.11); to look at them at all costs 40 ns a call.
#pragma once

#include "absl/status/status.h"

namespace millrace::base {

// For all threads of the process and all it will have; irrevocable. Call it early in main, once
// nothing is left to execute. Unimplemented where the kernel or the processor has no such filter:
// the caller says so and goes on. Errors leave the process as it is, but for no_new_privs.
absl::Status InstallSandbox();

// Makes the memory of this process unreadable to others of its user: "nobody" may be many. It then
// leaves no core either, which would hold secrets, and delay the take-over by the time it takes to
// write.
void HideMemory();

// True once InstallSandbox succeeded, for status and summary. Thread-safe.
bool SandboxInstalled();

}  // namespace millrace::base
