// The values of worker_api.h on the wire, and back. Both ways of a request are here, so that what
// one side may write the other can read; a request is checked while it is read.
//
// Pure; safe on any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/proto/worker.pb.h"
#include "common/proto/worker_api.h"

namespace millrace::proto {

namespace wire = millrace::worker::v1;

// Bytes of a path and of a source. A key of S3 has 1024 at most; a path of the kernel 4095.
inline constexpr size_t kPathMax = 4096;
inline constexpr size_t kTokenMax = 8192;
inline constexpr size_t kPathsMax = 1000;  // Of one Load.
inline constexpr uint32_t kEntriesMax = 10'000;
inline constexpr uint64_t kFileSizeMax = (uint64_t{1} << 63) - 1;
// Extents of one answer to Locate: 256 GiB by the extent of 64 MiB.
inline constexpr size_t kExtentsMax = 4096;

// --- Requests. InvalidArgument names the field and what is wrong with it: a source that is empty
// or beyond kPathMax; a path that is too long, has a NUL, begins or ends with a slash, or has an
// empty component, "." or ".."; more entries, paths or bytes than the constants above. ---
absl::StatusOr<LocateRequest> FromWire(const wire::LocateRequest& message);
absl::StatusOr<StatRequest> FromWire(const wire::StatRequest& message);
absl::StatusOr<ListRequest> FromWire(const wire::ListRequest& message);
absl::StatusOr<LoadRequest> FromWire(const wire::LoadRequest& message);
absl::StatusOr<EvictRequest> FromWire(const wire::EvictRequest& message);
wire::LocateRequest ToWire(const LocateRequest& request);
wire::StatRequest ToWire(const StatRequest& request);
wire::ListRequest ToWire(const ListRequest& request);
wire::LoadRequest ToWire(const LoadRequest& request);
wire::EvictRequest ToWire(const EvictRequest& request);

// --- Answers. They are a worker's word about itself, and taken as it is. ---
LocateReply FromWire(const wire::LocateReply& message);
StatReply FromWire(const wire::StatReply& message);
ListReply FromWire(const wire::ListReply& message);
LoadProgress FromWire(const wire::LoadProgress& message);
WorkerReport FromWire(const wire::ReportReply& message);
DrainProgress FromWire(const wire::DrainProgress& message);
wire::LocateReply ToWire(const LocateReply& reply);
wire::StatReply ToWire(const StatReply& reply);
wire::ListReply ToWire(const ListReply& reply);
wire::LoadProgress ToWire(const LoadProgress& progress);
wire::ReportReply ToWire(const WorkerReport& report);
wire::DrainProgress ToWire(const DrainProgress& progress);

}  // namespace millrace::proto
