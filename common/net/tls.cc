#include "common/net/tls.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::net {
namespace {

constexpr absl::Duration kLookEvery = absl::Seconds(1);
// Largest plaintext of a record (RFC 8446, section 5.1).
constexpr size_t kRecordMax = 16 * 1024;

using Ssl = std::unique_ptr<SSL, void (*)(SSL*)>;

std::string TakeErrors() {
  std::string text;
  while (const unsigned long code = ERR_get_error()) {
    if (!text.empty()) continue;  // The first is the cause.
    const char* reason = ERR_reason_error_string(code);
    text = reason != nullptr ? reason : absl::StrCat("OpenSSL error ", code);
  }
  return text.empty() ? "no reason given" : text;
}

absl::Status Broken(SSL* ssl, int result, absl::string_view what) {
  const int error = errno;
  switch (SSL_get_error(ssl, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      return absl::DeadlineExceededError("the other side neither sent nor took a byte in time");
    case SSL_ERROR_ZERO_RETURN:
      return absl::UnavailableError(absl::StrCat(what, ": the other side closed the connection"));
    case SSL_ERROR_SYSCALL:
      TakeErrors();
      return absl::UnavailableError(
          absl::StrCat(what, ": ", error != 0 ? strerror(error) : "the connection ended"));
    default:
      break;
  }
  const int reason = ERR_GET_REASON(ERR_peek_error());
  const std::string text = TakeErrors();
  if (reason == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
    return absl::UnavailableError(absl::StrCat(what, ": the connection ended"));
  }
  // An alert: with TLS 1.3 a client hears only after its handshake that it is not welcome.
  if (reason >= SSL_AD_REASON_OFFSET) {
    return absl::PermissionDeniedError(
        absl::StrCat(what, ": the other side refused this one's certificate: ", text));
  }
  return absl::DataLossError(absl::StrCat(what, ": ", text));
}

class TlsStream final : public Stream {
 public:
  // `ssl` has its handshake behind it, over `socket`.
  TlsStream(base::UniqueFd socket, Ssl ssl)
      : Stream(std::move(socket)),
        ssl_(std::move(ssl)),
        kernel_sends_(BIO_get_ktls_send(SSL_get_wbio(ssl_.get())) != 0) {}

  ~TlsStream() override {
    // Says goodbye if that costs no waiting.
    fcntl(socket(), F_SETFL, fcntl(socket(), F_GETFL) | O_NONBLOCK);
    ERR_clear_error();
    SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }

  absl::StatusOr<size_t> Read(char* data, size_t size, absl::Duration timeout) override {
    SetReceiveTimeout(timeout);
    ERR_clear_error();
    errno = 0;
    size_t got = 0;
    const int result = SSL_read_ex(ssl_.get(), data, size, &got);
    if (result == 1) return got;
    if (SSL_get_error(ssl_.get(), result) == SSL_ERROR_ZERO_RETURN) return 0;
    return Broken(ssl_.get(), result, "TLS read");
  }

  absl::StatusOr<size_t> ReadTwo(absl::Span<char> first, absl::Span<char>,
                                 absl::Duration timeout) override {
    return Read(first.data(), first.size(), timeout);
  }

  absl::Status WriteParts(absl::Span<const absl::string_view> parts, bool more,
                          absl::Duration timeout) override {
    // Small parts share a record with what follows them; whole records need no copy.
    for (absl::string_view part : parts) {
      while (!part.empty()) {
        if (held_.empty() && part.size() >= kRecordMax) {
          const size_t whole = part.size() - part.size() % kRecordMax;
          RETURN_IF_ERROR(Send(part.substr(0, whole), timeout));
          part.remove_prefix(whole);
          continue;
        }
        const size_t taken = std::min(part.size(), kRecordMax - held_.size());
        held_.append(part.data(), taken);
        part.remove_prefix(taken);
        if (held_.size() == kRecordMax) RETURN_IF_ERROR(SendHeld(timeout));
      }
    }
    return more ? absl::OkStatus() : SendHeld(timeout);
  }

  absl::Status SendFile(int file, uint64_t offset, uint64_t size, bool more,
                        absl::Duration timeout) override {
    if (kernel_sends_) {
      RETURN_IF_ERROR(SendHeld(timeout));
      SetSendTimeout(timeout);
      while (size > 0) {
        ERR_clear_error();
        errno = 0;
        const ossl_ssize_t sent = SSL_sendfile(ssl_.get(), file, static_cast<off_t>(offset),
                                               std::min<uint64_t>(size, 1 << 30), 0);
        if (sent == 0) {
          return absl::FailedPreconditionError("the file is shorter than it should be");
        }
        if (sent < 0) {
          if (errno == EINTR) continue;
          return Broken(ssl_.get(), static_cast<int>(sent), "TLS sendfile");
        }
        offset += static_cast<uint64_t>(sent);
        size -= static_cast<uint64_t>(sent);
      }
      return absl::OkStatus();
    }
    while (size > 0) {
      const size_t before = held_.size();
      const size_t wanted = std::min<uint64_t>(size, kRecordMax - before);
      held_.resize(before + wanted);
      const ssize_t got = pread(file, held_.data() + before, wanted, static_cast<off_t>(offset));
      held_.resize(before + std::max<ssize_t>(got, 0));
      if (got == 0) return absl::FailedPreconditionError("the file is shorter than it should be");
      if (got < 0) {
        if (errno == EINTR) continue;
        return base::ErrnoStatus(errno, "pread");
      }
      offset += static_cast<uint64_t>(got);
      size -= static_cast<uint64_t>(got);
      if (held_.size() == kRecordMax || (size == 0 && !more)) RETURN_IF_ERROR(SendHeld(timeout));
    }
    return absl::OkStatus();
  }

  absl::Status WriteWithDescriptor(absl::string_view, int, absl::Duration) override {
    return absl::FailedPreconditionError("a descriptor only goes through a Unix socket");
  }
  absl::StatusOr<size_t> ReadWithDescriptor(char* data, size_t size, base::UniqueFd*,
                                            absl::Duration timeout) override {
    return Read(data, size, timeout);
  }

  bool HasPending() const override { return SSL_has_pending(ssl_.get()) != 0; }
  bool zero_copy() const override { return kernel_sends_; }
  bool secure() const override { return true; }

 private:
  absl::Status SendHeld(absl::Duration timeout) {
    if (held_.empty()) return absl::OkStatus();
    RETURN_IF_ERROR(Send(held_, timeout));
    held_.clear();
    return absl::OkStatus();
  }

  absl::Status Send(absl::string_view data, absl::Duration timeout) {
    SetSendTimeout(timeout);
    while (!data.empty()) {
      ERR_clear_error();
      errno = 0;
      size_t sent = 0;
      const int result = SSL_write_ex(ssl_.get(), data.data(), data.size(), &sent);
      if (result != 1) {
        if (errno == EINTR) continue;
        return Broken(ssl_.get(), result, "TLS write");
      }
      data.remove_prefix(sent);
    }
    return absl::OkStatus();
  }

  const Ssl ssl_;
  const bool kernel_sends_;
  std::string held_;  // To be sent with what follows; less than a record.
};

absl::Status SetName(SSL* ssl, const std::string& name) {
  in6_addr parsed = {};
  const bool numeric = inet_pton(AF_INET, name.c_str(), &parsed) == 1 ||
                       inet_pton(AF_INET6, name.c_str(), &parsed) == 1;
  const bool set = numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name.c_str()) == 1
                           : SSL_set1_host(ssl, name.c_str()) == 1 &&
                                 SSL_set_tlsext_host_name(ssl, name.c_str()) == 1;
  if (set) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("no name for a certificate: ", name));
}

// The handshake does not block, so that a peer that trickles bytes cannot make it last.
absl::StatusOr<std::unique_ptr<Stream>> Shake(base::UniqueFd socket, Ssl ssl,
                                              absl::Duration timeout) {
  const absl::Duration deadline = base::RealClock()->Monotonic() + timeout;
  fcntl(socket.get(), F_SETFL, fcntl(socket.get(), F_GETFL) | O_NONBLOCK);
  if (SSL_set_fd(ssl.get(), socket.get()) != 1) return absl::InternalError(TakeErrors());
  while (true) {
    ERR_clear_error();
    errno = 0;
    const int result = SSL_do_handshake(ssl.get());
    if (result == 1) break;
    const int error = SSL_get_error(ssl.get(), result);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
      const long verified = SSL_get_verify_result(ssl.get());
      const absl::Status broken = Broken(ssl.get(), result, "TLS handshake");
      if (verified != X509_V_OK) {
        return absl::PermissionDeniedError(
            absl::StrCat("the certificate of the other side is not accepted: ",
                         X509_verify_cert_error_string(verified)));
      }
      // What the other side did not like, or what no TLS peer sends.
      if (absl::IsDataLoss(broken)) return absl::PermissionDeniedError(broken.message());
      return broken;
    }
    const absl::Duration left = deadline - base::RealClock()->Monotonic();
    if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError("TLS handshake: too slow");
    const short events = error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
    pollfd waited = {socket.get(), events, 0};
    poll(&waited, 1,
         static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(left) + 1, 86'400'000)));
  }
  return std::unique_ptr<Stream>(std::make_unique<TlsStream>(std::move(socket), std::move(ssl)));
}

absl::Status Unusable(const std::string& file) {
  const absl::Status readable =
      access(file.c_str(), R_OK) == 0 ? absl::OkStatus() : base::ErrnoStatus(errno, file);
  if (!readable.ok()) {
    TakeErrors();
    return readable;
  }
  return absl::InvalidArgumentError(absl::StrCat(file, " cannot be used: ", TakeErrors()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tls>> Tls::Load(const TlsFiles& files, base::Clock* clock) {
  std::unique_ptr<Tls> tls(new Tls(files, clock));
  const Signature signature = tls->Look();
  ASSIGN_OR_RETURN(Context context, LoadContext(files));
  base::MutexLock lock(&tls->mutex_);
  tls->context_ = std::move(context);
  tls->signature_ = signature;
  tls->looked_ = clock->Monotonic();
  return tls;
}

absl::StatusOr<Tls::Context> Tls::LoadContext(const TlsFiles& files) {
  ERR_clear_error();
  Context context(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  if (context == nullptr) return absl::InternalError(TakeErrors());
  SSL_CTX* raw = context.get();
  SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION);
  SSL_CTX_set_mode(raw, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                            SSL_MODE_RELEASE_BUFFERS);
  // Without auto-retry a read may return for a session ticket: then it is retried with a time-out.
  SSL_CTX_set_options(raw, SSL_OP_ENABLE_KTLS | SSL_OP_NO_RENEGOTIATION);
  SSL_CTX_set_num_tickets(raw, 0);
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  // What the kernel can do, and has instructions for, first.
  SSL_CTX_set_ciphersuites(
      raw, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
  SSL_CTX_set_verify(raw, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  if (SSL_CTX_load_verify_file(raw, files.authority.c_str()) != 1) return Unusable(files.authority);
  if (SSL_CTX_use_certificate_chain_file(raw, files.certificate.c_str()) != 1) {
    return Unusable(files.certificate);
  }
  if (SSL_CTX_use_PrivateKey_file(raw, files.key.c_str(), SSL_FILETYPE_PEM) != 1) {
    return Unusable(files.key);
  }
  if (SSL_CTX_check_private_key(raw) != 1) {
    TakeErrors();
    return absl::InvalidArgumentError(
        absl::StrCat(files.key, " is not the key of ", files.certificate));
  }
  return context;
}

Tls::Signature Tls::Look() const {
  Signature signature;
  for (const std::string* file : {&files_.certificate, &files_.key, &files_.authority}) {
    struct stat now = {};
    if (stat(file->c_str(), &now) != 0) now = {};
    absl::StrAppend(&signature, now.st_dev, ":", now.st_ino, ":", now.st_size, ":",
                    now.st_mtim.tv_sec, ".", now.st_mtim.tv_nsec, ";");
  }
  return signature;
}

Tls::Context Tls::Current() {
  base::MutexLock lock(&mutex_);
  const absl::Duration now = clock_->Monotonic();
  if (now - looked_ < kLookEvery) return context_;
  looked_ = now;
  Signature signature = Look();
  if (signature == signature_) return context_;
  signature_ = std::move(signature);
  absl::StatusOr<Context> loaded = LoadContext(files_);
  if (loaded.ok()) {
    context_ = *std::move(loaded);
    base::Log(base::Severity::kInfo, "certificates loaded again",
              {{"certificate", files_.certificate}});
  } else {
    base::Log(base::Severity::kWarning, "changed certificates cannot be used, the old ones stay",
              {{"cause", loaded.status().ToString()}});
  }
  return context_;
}

absl::StatusOr<std::unique_ptr<Stream>> Tls::Accept(base::UniqueFd socket, absl::Duration timeout) {
  const Context context = Current();
  Ssl ssl(SSL_new(context.get()), SSL_free);
  if (ssl == nullptr) return absl::InternalError(TakeErrors());
  SSL_set_accept_state(ssl.get());
  return Shake(std::move(socket), std::move(ssl), timeout);
}

absl::StatusOr<std::unique_ptr<Stream>> Tls::Connect(base::UniqueFd socket, const std::string& name,
                                                     absl::Duration timeout) {
  const Context context = Current();
  Ssl ssl(SSL_new(context.get()), SSL_free);
  if (ssl == nullptr) return absl::InternalError(TakeErrors());
  RETURN_IF_ERROR(SetName(ssl.get(), name));
  SSL_set_connect_state(ssl.get());
  return Shake(std::move(socket), std::move(ssl), timeout);
}

}  // namespace millrace::net
