// What an application gets for a status: the one place where statuses become errno values.
#pragma once

#include "absl/status/status.h"

namespace millrace::adapter {

// The errno payload if there is one, else by code. REQUIRES: !status.ok().
int ErrnoFor(const absl::Status& status);

}  // namespace millrace::adapter
