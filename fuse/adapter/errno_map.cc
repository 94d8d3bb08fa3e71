#include "fuse/adapter/errno_map.h"

#include <cerrno>

#include "common/base/errno_status.h"

namespace millrace::adapter {

int ErrnoFor(const absl::Status& status) {
  if (const std::optional<int> error = base::ErrnoOf(status)) return *error;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kNotFound:
      return ENOENT;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return EACCES;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAborted:
      return ESTALE;
    case absl::StatusCode::kCancelled:
      return EINTR;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return EINVAL;
    case absl::StatusCode::kResourceExhausted:
      return ENOMEM;
    case absl::StatusCode::kAlreadyExists:
      return EEXIST;
    case absl::StatusCode::kUnimplemented:
      return EOPNOTSUPP;
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDataLoss:
      return EIO;
    default:  // absl reserves further codes.
      return EIO;
  }
}

}  // namespace millrace::adapter
