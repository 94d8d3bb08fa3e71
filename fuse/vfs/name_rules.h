// Which names of a store the file system shows. Pure rules, stated for people in
// fuse/SEMANTICS.md: a store's names are hostile, and every one that cannot be a file name of
// Linux, or would lead out of its directory, is left out and counted.
//
// Bytes are not interpreted: control characters, invalid UTF-8 and names that differ only in case
// or normalisation are shown as the store has them. A file name in Linux is a string of bytes, and
// any translation would make two names one or leave a file that cannot be opened.
//
// Threads. Values and pure functions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "cache/store/store.h"

namespace millrace::vfs {

// The kernel takes up to 1024 bytes from FUSE, other file systems have 255, and programs are built
// for those (NAME_MAX, d_name).
inline constexpr size_t kNameBytesMax = 255;

enum class Hidden : uint8_t {
  kNo,
  kMarker,            // "" or "x/": the zero-byte object that stands for a directory.
  kDots,              // "." and "..".
  kSlash,             // A "/" inside.
  kNul,               // A NUL byte inside.
  kTooLong,           // More than kNameBytesMax bytes.
  kTooLarge,          // An object of more than 2^63-1 bytes.
  kVersionTooLong,    // An object whose version has more than 65,535 bytes.
  kFileAndDirectory,  // A file of the same name as a directory.
  kDuplicate,         // A second entry of the same name and kind.
};
inline constexpr size_t kHiddenReasons = static_cast<size_t>(Hidden::kDuplicate) + 1;

// The rule that hides a name, or kNo.
Hidden HiddenByName(absl::string_view name);

// The rule that hides an entry by itself, or kNo. kFileAndDirectory and kDuplicate need the whole
// listing and are found there.
Hidden HiddenByRule(const store::Entry& entry);

// For logs: "name too long".
absl::string_view HiddenReason(Hidden hidden);

// How many names a listing left out, by rule, with an example for the log.
class HiddenCounts {
 public:
  // Does nothing for kNo.
  void Count(Hidden hidden, absl::string_view name);
  uint64_t total() const;
  uint64_t of(Hidden hidden) const { return counts_[static_cast<size_t>(hidden)]; }
  // At most 300 bytes of the first name counted.
  const std::string& example() const { return example_; }
  // "name too long: 3, duplicate name: 1".
  std::string ToString() const;

 private:
  std::array<uint32_t, kHiddenReasons> counts_ = {};
  std::string example_;
};

}  // namespace millrace::vfs
