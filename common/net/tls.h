// TLS 1.3 with certificates on both sides: each end proves that the same authority vouches for it.
//
// The files may change (a secret that is rotated): new connections use the new ones, within a
// second; files that do not fit together are reported and the old ones stay. Thread-safe.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/clock.h"
#include "common/base/mutex.h"
#include "common/base/unique_fd.h"
#include "common/net/stream.h"

struct ssl_ctx_st;

namespace millrace::net {

// PEM files.
struct TlsFiles {
  std::string certificate;  // Ours, with the chain to the authority if there is one between.
  std::string key;
  std::string authority;  // Certificates of the authorities that the other side's must come from.

  bool any() const { return !certificate.empty() || !key.empty() || !authority.empty(); }
  bool all() const { return !certificate.empty() && !key.empty() && !authority.empty(); }
};

class Tls {
 public:
  // InvalidArgument or the errno's code, with the file's name, for what cannot be used.
  static absl::StatusOr<std::unique_ptr<Tls>> Load(const TlsFiles& files, base::Clock* clock);

  // The handshake of each side, with `timeout` for all of it. PermissionDenied when a side does not
  // accept the other's certificate; the message says why.
  absl::StatusOr<std::unique_ptr<Stream>> Accept(base::UniqueFd socket, absl::Duration timeout);
  // The certificate must be for `name`, a host name or a numeric address.
  absl::StatusOr<std::unique_ptr<Stream>> Connect(base::UniqueFd socket, const std::string& name,
                                                  absl::Duration timeout);

 private:
  using Context = std::shared_ptr<ssl_ctx_st>;
  // What tells one state of the files from another.
  using Signature = std::string;

  Tls(TlsFiles files, base::Clock* clock) : files_(std::move(files)), clock_(clock) {}
  static absl::StatusOr<Context> LoadContext(const TlsFiles& files);
  Signature Look() const;
  Context Current();

  const TlsFiles files_;
  base::Clock* const clock_;
  base::Mutex mutex_;
  Context context_ ABSL_GUARDED_BY(mutex_);
  Signature signature_ ABSL_GUARDED_BY(mutex_);
  absl::Duration looked_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
};

}  // namespace millrace::net
