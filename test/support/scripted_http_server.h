// An HTTP server whose every answer a test writes: for answers that no real server gives on demand.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/mutex.h"
#include "test/support/connection_server.h"
#include "test/support/http_message.h"

namespace millrace::test {

class ScriptedHttpServer {
 public:
  // Returns the raw bytes of an answer. Called from many threads.
  using Handler = std::function<std::string(const HttpHead& request)>;

  explicit ScriptedHttpServer(Handler handler);

  std::string url() const;
  // The heads of all requests so far.
  std::vector<HttpHead> requests() const;

  // An answer with Content-Length; `headers` are whole lines without line ends.
  static std::string Answer(int status, const std::vector<std::string>& headers,
                            absl::string_view body);

 private:
  void Serve(base::UniqueFd connection);

  const Handler handler_;
  mutable base::Mutex mutex_;
  std::vector<HttpHead> requests_ ABSL_GUARDED_BY(mutex_);
  ConnectionServer server_;
};

}  // namespace millrace::test
