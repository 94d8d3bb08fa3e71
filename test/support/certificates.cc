#include "test/support/certificates.h"

#include <arpa/inet.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace millrace::testing {
namespace {

using Key = std::unique_ptr<EVP_PKEY, void (*)(EVP_PKEY*)>;
using Certificate = std::unique_ptr<X509, void (*)(X509*)>;
using File = std::unique_ptr<FILE, int (*)(FILE*)>;

void Must(bool done) {
  if (!done) std::abort();
}

Key NewKey() {
  Key key(EVP_EC_gen("P-256"), EVP_PKEY_free);
  Must(key != nullptr);
  return key;
}

void Extend(X509* certificate, X509* issuer, int kind, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
  Must(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1);
  X509_EXTENSION_free(extension);
}

Certificate NewCertificate(const std::string& name, EVP_PKEY* key, X509* issuer) {
  static long serial = 1;
  Certificate certificate(X509_new(), X509_free);
  Must(certificate != nullptr);
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), serial++);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_issuer_name(certificate.get(),
                       issuer == nullptr ? subject : X509_get_subject_name(issuer));
  return certificate;
}

template <typename Write>
void WriteFile(const std::string& path, Write write) {
  File file(fopen(path.c_str(), "we"), fclose);
  Must(file != nullptr && write(file.get()) == 1);
}

}  // namespace

struct TestAuthority::Parts {
  Key key;
  Certificate certificate;
};

TestAuthority::TestAuthority(std::string directory, std::string name)
    : directory_(std::move(directory)),
      file_(absl::StrCat(directory_, "/", name, ".pem")),
      parts_(new Parts{NewKey(), Certificate(nullptr, X509_free)}) {
  parts_->certificate = NewCertificate(name, parts_->key.get(), nullptr);
  X509* self = parts_->certificate.get();
  Extend(self, self, NID_basic_constraints, "critical,CA:TRUE");
  Extend(self, self, NID_key_usage, "critical,keyCertSign,cRLSign");
  Must(X509_sign(self, parts_->key.get(), EVP_sha256()) > 0);
  WriteFile(file_, [self](FILE* file) { return PEM_write_X509(file, self); });
}

TestAuthority::~TestAuthority() { delete parts_; }

net::TlsFiles TestAuthority::Issue(const std::string& holder,
                                   const std::vector<std::string>& names) {
  const Key key = NewKey();
  const Certificate certificate = NewCertificate(holder, key.get(), parts_->certificate.get());
  const std::string alternatives =
      absl::StrJoin(names, ",", [](std::string* out, const std::string& name) {
        in6_addr parsed = {};
        const bool numeric = inet_pton(AF_INET, name.c_str(), &parsed) == 1 ||
                             inet_pton(AF_INET6, name.c_str(), &parsed) == 1;
        absl::StrAppend(out, numeric ? "IP:" : "DNS:", name);
      });
  Extend(certificate.get(), parts_->certificate.get(), NID_subject_alt_name, alternatives);
  Must(X509_sign(certificate.get(), parts_->key.get(), EVP_sha256()) > 0);
  net::TlsFiles files = {absl::StrCat(directory_, "/", holder, ".pem"),
                         absl::StrCat(directory_, "/", holder, ".key"), file_};
  WriteFile(files.certificate, [&](FILE* file) { return PEM_write_X509(file, certificate.get()); });
  WriteFile(files.key, [&](FILE* file) {
    return PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  });
  return files;
}

}  // namespace millrace::testing
