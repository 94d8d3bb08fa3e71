// The difference between two versions of an index, entry by entry. format.md has its bytes.
//
// Applied to the older index it gives the newer one byte for byte, which is checked. Two that
// follow each other compose to one. So whoever keeps the last few differences can bring anybody up
// to date who has one of the last few indexes.
//
// Threads. Pure functions; what they are given must not change meanwhile.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/index/index_file.h"
#include "common/base/unique_fd.h"

namespace millrace::index {

// From `from` to `to`, which have the same seed and source. ResourceExhausted when it would be
// longer than `bytes_max`: then the whole index is the shorter message.
absl::StatusOr<std::string> Diff(const Index& from, const Index& to, uint64_t bytes_max);

// The index that `delta` leads to, written to `file` (empty, open for reading and writing).
// FailedPrecondition: it does not begin at `from`. DataLoss: it is damaged, or does not lead to
// what it says. The file is of no use then; it is never longer than `from` and `delta` account for.
absl::StatusOr<std::shared_ptr<const Index>> Apply(const Index& from, absl::string_view delta,
                                                   base::UniqueFd file);

// The difference from the beginning of `first` to the end of `second`. FailedPrecondition: they do
// not follow each other. DataLoss, ResourceExhausted as above.
absl::StatusOr<std::string> Compose(absl::string_view first, absl::string_view second,
                                    uint64_t bytes_max);

}  // namespace millrace::index
