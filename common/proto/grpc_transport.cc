#include "common/proto/grpc_transport.h"

#include <atomic>
#include <cstddef>
#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/base/clock.h"
#include "common/base/file_text.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "grpc/support/log.h"
#include "grpcpp/security/tls_certificate_provider.h"
#include "grpcpp/security/tls_certificate_verifier.h"
#include "grpcpp/security/tls_credentials_options.h"

namespace millrace::proto {
namespace {

constexpr size_t kPemMax = 1 << 20;
// gRPC's limit for all headers of an answer is 8 KiB, and a byte may take three of them.
constexpr size_t kMessageTextMax = 2048;
constexpr absl::Duration kLogEvery = absl::Seconds(1);

absl::Status CheckPem(absl::string_view what, const std::string& path) {
  const absl::StatusOr<std::string> text = base::ReadTextFile(path, kPemMax);
  if (!text.ok()) {
    return absl::Status(text.status().code(), absl::StrCat(what, ": ", text.status().message()));
  }
  if (!absl::StrContains(*text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", path, " is no PEM file"));
  }
  return absl::OkStatus();
}

using Provider = std::shared_ptr<grpc::experimental::CertificateProviderInterface>;

// Null: no TLS.
absl::StatusOr<Provider> ProviderOf(const GrpcTls& tls) {
  if (tls.certificate.empty() && tls.key.empty() && tls.authority.empty()) return Provider();
  if (tls.certificate.empty() || tls.key.empty() || tls.authority.empty()) {
    return absl::InvalidArgumentError(
        "mutual TLS takes three files: give --certificate, --key and --authority, or none of them");
  }
  RETURN_IF_ERROR(CheckPem("--certificate", tls.certificate));
  RETURN_IF_ERROR(CheckPem("--key", tls.key));
  RETURN_IF_ERROR(CheckPem("--authority", tls.authority));
  return Provider(std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key, tls.certificate, tls.authority,
      static_cast<unsigned>(absl::ToInt64Seconds(tls.look_every))));
}

void Complain(gpr_log_func_args* args) {
  // Nanoseconds of the monotonic clock from which on the next line is due.
  static std::atomic<int64_t> next{0};
  const int64_t now = absl::ToInt64Nanoseconds(base::RealClock()->Monotonic());
  int64_t due = next.load(std::memory_order_relaxed);
  if (now < due || !next.compare_exchange_strong(due, now + absl::ToInt64Nanoseconds(kLogEvery))) {
    return;
  }
  base::Log(base::Severity::kWarning, "gRPC", {{"cause", args->message}});
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const GrpcTls& tls) {
  ASSIGN_OR_RETURN(const Provider provider, ProviderOf(tls));
  if (provider == nullptr) return grpc::InsecureServerCredentials();
  grpc::experimental::TlsServerCredentialsOptions options(provider);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const GrpcTls& tls) {
  ASSIGN_OR_RETURN(const Provider provider, ProviderOf(tls));
  if (provider == nullptr) return grpc::InsecureChannelCredentials();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_provider(provider);
  options.watch_root_certs();
  options.watch_identity_key_cert_pairs();
  options.set_verify_server_certs(true);
  options.set_certificate_verifier(
      std::make_shared<grpc::experimental::HostNameCertificateVerifier>());
  return grpc::experimental::TlsCredentials(options);
}

void UseOurLog() {
  static std::once_flag once;
  std::call_once(once, [] { gpr_set_log_function(Complain); });
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()),
          std::string(status.message().substr(0, kMessageTextMax))};
}

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

}  // namespace millrace::proto
