// Certificates for tests: an authority, and what it vouches for, as PEM files of a directory.
#pragma once

#include <string>
#include <vector>

#include "common/net/tls.h"

namespace millrace::testing {

class TestAuthority {
 public:
  // Writes NAME.pem below `directory`. Aborts when it cannot.
  TestAuthority(std::string directory, std::string name);
  ~TestAuthority();

  // Writes HOLDER.pem and HOLDER.key: valid for an hour, for the names (host names or IPv4/IPv6
  // addresses).
  net::TlsFiles Issue(const std::string& holder, const std::vector<std::string>& names);
  const std::string& file() const { return file_; }

 private:
  struct Parts;
  const std::string directory_;
  const std::string file_;
  Parts* const parts_;
};

}  // namespace millrace::testing
