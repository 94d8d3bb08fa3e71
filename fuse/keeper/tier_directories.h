// Directories of the cache in the hands of the daemon's user.
//
// A daemon without privilege can write to what it owns only. So the keeper makes the directories
// before it starts one, and hands over those that another user's daemon left: root's, from a
// version without a keeper or with --user root. What is no cache of ours is never touched.
//
// Stateless; safe for concurrent use.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "fuse/keeper/launch.h"

namespace millrace::keeper {

// Makes each of `paths` (mode 0700, owned by `identity`) and what is missing above it (0755, ours),
// or gives an existing one to `identity`, with all of the cache in it. Idempotent, and quick when
// the owner is right already: then it looks at four names, however many files the cache has. Links
// below a path are not followed, and neither they nor files that have other names are given away.
//
// REQUIRES: absolute paths, links above the last component resolved (base::ResolvePath).
//
// FailedPrecondition: the directory holds something that is no cache, or is in use by a process.
absl::Status PrepareTierDirectories(absl::Span<const std::string> paths, const Identity& identity);

}  // namespace millrace::keeper
