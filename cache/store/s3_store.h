// Amazon S3 and what speaks its protocol (MinIO, Ceph, OSS, versitygw, …).
//
// Keys are names: "a//b" is an entry "b" in the directory "" of "a". A zero-byte object "dir/"
// marks a directory and is no entry of it. Versions are ETags; Get asks with If-Match and checks
// the answer again, since some servers ignore it.
#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "cache/store/s3_options.h"
#include "cache/store/store.h"

namespace millrace::store {

std::shared_ptr<Store> NewS3Store(S3Options options);

// The canonical URL of `key` (with '/' kept) in the bucket of `options`, as Signature V4 wants it;
// `query` is appended as it is. For tests.
std::string S3Url(const S3Options& options, absl::string_view key, absl::string_view query);

}  // namespace millrace::store
