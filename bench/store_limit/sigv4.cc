#include "bench/store_limit/sigv4.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace millrace::bench {
namespace {

// SHA-256 of nothing: the payload of every GET.
constexpr absl::string_view kEmptyHash =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string Hmac(absl::string_view key, absl::string_view text) {
  std::string mac(SHA256_DIGEST_LENGTH, '\0');
  unsigned length = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(),
       reinterpret_cast<unsigned char*>(mac.data()), &length);
  return mac;
}

std::string HexHash(absl::string_view text) {
  unsigned char hash[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), hash);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(hash), sizeof(hash)));
}

}  // namespace

Signer::Signer(SigningKey key) : key_(std::move(key)) {}

void Signer::Refresh(absl::Time now) {
  const int64_t second = absl::ToUnixSeconds(now);
  if (second == second_) return;
  second_ = second;
  timestamp_ = absl::FormatTime("%Y%m%dT%H%M%SZ", now, absl::UTCTimeZone());
  const std::string day = timestamp_.substr(0, 8);
  std::string scope = absl::StrCat(day, "/", key_.region, "/", key_.service, "/aws4_request");
  if (scope == scope_) return;
  scope_ = std::move(scope);
  derived_key_ =
      Hmac(Hmac(Hmac(Hmac(absl::StrCat("AWS4", key_.secret_key), day), key_.region), key_.service),
           "aws4_request");
}

std::string Signer::Authorization(const GetToSign& get, absl::Time now) {
  Refresh(now);
  const bool ranged = !get.range.empty();
  const absl::string_view signed_headers = ranged ? "host;range;x-amz-content-sha256;x-amz-date"
                                                  : "host;x-amz-content-sha256;x-amz-date";
  const std::string canonical = absl::StrCat(
      "GET\n", get.path, "\n", get.query, "\nhost:", get.host, "\n",
      ranged ? absl::StrCat("range:", get.range, "\n") : "", "x-amz-content-sha256:", kEmptyHash,
      "\nx-amz-date:", timestamp_, "\n\n", signed_headers, "\n", kEmptyHash);
  const std::string to_sign =
      absl::StrCat("AWS4-HMAC-SHA256\n", timestamp_, "\n", scope_, "\n", HexHash(canonical));
  return absl::StrCat("AWS4-HMAC-SHA256 Credential=", key_.access_key, "/", scope_,
                      ",SignedHeaders=", signed_headers,
                      ",Signature=", absl::BytesToHexString(Hmac(derived_key_, to_sign)));
}

std::string Signer::SignedHead(const GetToSign& get, absl::Time now) {
  const std::string authorization = Authorization(get, now);
  return absl::StrCat("GET ", get.path, get.query.empty() ? "" : "?", get.query,
                      " HTTP/1.1\r\nHost: ", get.host, "\r\nx-amz-content-sha256: ", kEmptyHash,
                      "\r\nx-amz-date: ", timestamp_,
                      get.range.empty() ? "" : absl::StrCat("\r\nRange: ", get.range),
                      "\r\nAuthorization: ", authorization, "\r\n\r\n");
}

std::string EncodePath(absl::string_view path) {
  std::string encoded;
  for (const char c : path) {
    if (absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' || c == '~' || c == '/') {
      encoded.push_back(c);
    } else {
      absl::StrAppendFormat(&encoded, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

}  // namespace millrace::bench
