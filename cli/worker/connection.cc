#include "cli/worker/connection.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cli/terminal.h"
#include "common/base/status_macros.h"
#include "common/net/address.h"
#include "common/net/socket.h"

namespace millrace::cli {
namespace {

// A bracket ends an IPv6 address without a port.
bool HasPort(absl::string_view text) {
  const size_t colon = text.rfind(':');
  return colon != absl::string_view::npos && text.back() != ']';
}

absl::StatusOr<net::Address> ParseWorker(absl::string_view text) {
  const absl::StatusOr<net::Address> address = net::ParseAddress(
      HasPort(text) ? std::string(text) : absl::StrCat(text, ":", proto::kControlPort));
  if (!address.ok() || address->is_unix() || address->host.empty() || address->port == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", Printable(text), "\" is no worker; write HOST, HOST:PORT or dns:NAME:PORT, as in ",
        "worker-0.cache:", proto::kControlPort));
  }
  return address;
}

}  // namespace

void Declare(ConnectionFlags* connection, base::FlagSet* flags) {
  flags->Text("certificate", "FILE", &connection->certificate,
              "PEM certificate to show to workers that want one (with --key and --authority)");
  flags->Text("key", "FILE", &connection->key, "its PEM key");
  flags->Text("authority", "FILE", &connection->authority,
              "PEM certificates of whom the workers' own must come from");
  flags->Duration("timeout", &connection->timeout,
                  "how long a worker may take to answer (default 5s)");
}

absl::StatusOr<std::vector<proto::WorkerClientOptions>> FindWorkers(
    const std::vector<std::string>& words, const ConnectionFlags& connection) {
  if (connection.timeout < absl::Milliseconds(1) || connection.timeout > absl::Hours(1)) {
    return absl::InvalidArgumentError("--timeout must be between 1ms and 1h");
  }
  std::vector<proto::WorkerClientOptions> workers;
  const auto add = [&](const net::Address& address) -> proto::WorkerClientOptions& {
    proto::WorkerClientOptions& options = workers.emplace_back();
    options.address = address.ToString();
    options.certificate = connection.certificate;
    options.key = connection.key;
    options.authority = connection.authority;
    options.connect_timeout = connection.timeout;
    options.answer_timeout = connection.timeout;
    options.cancelled = &Interrupted();
    return options;
  };
  for (const std::string& word : words) {
    for (absl::string_view text : absl::StrSplit(word, ',', absl::SkipEmpty())) {
      const bool name = absl::ConsumePrefix(&text, "dns:");
      ASSIGN_OR_RETURN(const net::Address address, ParseWorker(text));
      if (!name) {
        add(address);
        continue;
      }
      ASSIGN_OR_RETURN(const std::vector<std::string> hosts, net::Resolve(address.host));
      for (const std::string& host : hosts) {
        // What a certificate says is the name that was asked for, not where it led to.
        add({host, address.port, ""}).server_name = address.host;
      }
    }
  }
  if (workers.empty()) add({"localhost", proto::kControlPort, ""});
  return workers;
}

}  // namespace millrace::cli
