// Paths as text, and as the kernel sees them.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace millrace::base {

// Absolute, without ".", "..", "//" or a trailing slash, by text alone: nothing is looked up.
// Relative paths are below `cwd`.
std::string NormalizePath(absl::string_view path, absl::string_view cwd);

// The path the kernel knows: absolute, symbolic links resolved as far as the path exists (so that
// every way to write a mountpoint names the same mount), the rest by text. Works on the root of a
// dead FUSE mount too, which answers no request but can still be named.
std::string ResolvePath(absl::string_view path);

// True if `path` is `directory` or below it. Both normalized.
bool IsAtOrBelow(absl::string_view path, absl::string_view directory);

}  // namespace millrace::base
