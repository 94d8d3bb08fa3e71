// The two macros of error handling. Every fallible function returns absl::Status or
// absl::StatusOr<T>; nothing in the project throws.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MILLRACE_CONCAT_INNER(a, b) a##b
#define MILLRACE_CONCAT(a, b) MILLRACE_CONCAT_INNER(a, b)

// Leaves the function with the status of `expr` unless it is OK.
#define RETURN_IF_ERROR(expr)                           \
  do {                                                  \
    if (absl::Status status_ = (expr); !status_.ok()) { \
      return status_;                                   \
    }                                                   \
  } while (false)

// Assigns the value of the StatusOr `expr` to `lhs` (a declaration or an lvalue), or leaves the
// function with its status.
#define ASSIGN_OR_RETURN(lhs, expr) \
  MILLRACE_ASSIGN_OR_RETURN(MILLRACE_CONCAT(status_or_, __LINE__), lhs, expr)
#define MILLRACE_ASSIGN_OR_RETURN(statusor, lhs, expr)     \
  auto statusor = (expr);                                  \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = *std::move(statusor)
