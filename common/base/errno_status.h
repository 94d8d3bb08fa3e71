// The errno of a failed system call inside an absl::Status, and back.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace millrace::base {

// A status with the canonical code that fits `error`, the message "<what>: <strerror>", and the
// errno itself as a payload.
absl::Status ErrnoStatus(int error, absl::string_view what);

// The errno that ErrnoStatus or WithErrno put there.
std::optional<int> ErrnoOf(const absl::Status& status);

// The same status with `error` as its errno, for errors that did not come from a system call but
// must reach an application as a given errno (ESTALE for a changed object).
absl::Status WithErrno(absl::Status status, int error);

}  // namespace millrace::base
