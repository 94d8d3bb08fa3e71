#include "test/support/scripted_http_server.h"

#include "absl/strings/str_cat.h"
#include "test/support/socket.h"

namespace millrace::test {

ScriptedHttpServer::ScriptedHttpServer(Handler handler)
    : handler_(std::move(handler)),
      server_(0, [this](base::UniqueFd connection) { Serve(std::move(connection)); }) {}

std::string ScriptedHttpServer::url() const {
  return absl::StrCat("http://127.0.0.1:", server_.port());
}

std::vector<HttpHead> ScriptedHttpServer::requests() const {
  base::MutexLock lock(&mutex_);
  return requests_;
}

std::string ScriptedHttpServer::Answer(int status, const std::vector<std::string>& headers,
                                       absl::string_view body) {
  std::string text = absl::StrCat("HTTP/1.1 ", status, " Scripted\r\n");
  for (const std::string& header : headers) absl::StrAppend(&text, header, "\r\n");
  return absl::StrCat(text, "Content-Length: ", body.size(), "\r\n\r\n", body);
}

void ScriptedHttpServer::Serve(base::UniqueFd connection) {
  std::string buffer;
  while (std::optional<HttpHead> request = ReadHead(connection.get(), &buffer)) {
    {
      base::MutexLock lock(&mutex_);
      requests_.push_back(*request);
    }
    std::string answer = handler_(*request);
    // HEAD is answered with the head of what GET would get.
    if (request->method() == "HEAD") answer.resize(answer.find("\r\n\r\n") + 4);
    if (!SendAll(connection.get(), answer)) return;
  }
}

}  // namespace millrace::test
