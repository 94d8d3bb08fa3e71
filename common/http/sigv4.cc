#include "common/http/sigv4.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/sha.h>

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace millrace::http {
namespace {

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

void Signer::Refresh(const AwsSigV4& sign, absl::Time now) {
  const int64_t second = absl::ToUnixSeconds(now);
  if (second != second_) {
    second_ = second;
    timestamp_ = absl::FormatTime("%Y%m%dT%H%M%SZ", now, absl::UTCTimeZone());
  }
  const absl::string_view day = absl::string_view(timestamp_).substr(0, 8);
  std::string scope = absl::StrCat(day, "/", sign.region, "/", sign.service, "/aws4_request");
  if (scope == scope_ && sign.secret_access_key == secret_) return;
  scope_ = std::move(scope);
  secret_ = sign.secret_access_key;
  derived_key_ =
      Hmac(Hmac(Hmac(Hmac(absl::StrCat("AWS4", secret_), day), sign.region), sign.service),
           "aws4_request");
}

std::vector<Header> Signer::Sign(const AwsSigV4& sign, absl::string_view host,
                                 absl::string_view path, absl::string_view query,
                                 const std::vector<Header>& headers, absl::Time now) {
  Refresh(sign, now);
  std::vector<Header> added = {{"x-amz-content-sha256", std::string(kEmptyBodySha256)},
                               {"x-amz-date", timestamp_}};
  if (!sign.session_token.empty()) added.push_back({"x-amz-security-token", sign.session_token});

  std::vector<Header> all = added;
  all.push_back({"host", std::string(host)});
  for (const Header& header : headers) {
    all.push_back({absl::AsciiStrToLower(header.name),
                   std::string(absl::StripAsciiWhitespace(header.value))});
  }
  std::sort(all.begin(), all.end(),
            [](const Header& a, const Header& b) { return a.name < b.name; });
  std::string canonical = absl::StrCat("GET\n", path, "\n", query, "\n");
  std::string names;
  for (const Header& header : all) {
    absl::StrAppend(&canonical, header.name, ":", header.value, "\n");
    absl::StrAppend(&names, names.empty() ? "" : ";", header.name);
  }
  absl::StrAppend(&canonical, "\n", names, "\n", kEmptyBodySha256);
  const std::string to_sign =
      absl::StrCat("AWS4-HMAC-SHA256\n", timestamp_, "\n", scope_, "\n", HexHash(canonical));
  added.push_back(
      {"Authorization", absl::StrCat("AWS4-HMAC-SHA256 Credential=", sign.access_key_id, "/",
                                     scope_, ", SignedHeaders=", names, ", Signature=",
                                     absl::BytesToHexString(Hmac(derived_key_, to_sign)))});
  return added;
}

}  // namespace millrace::http
