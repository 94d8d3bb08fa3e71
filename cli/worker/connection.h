// From what a user typed to connections to workers.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/flags.h"
#include "common/proto/worker_client.h"

namespace millrace::cli {

// --certificate, --key, --authority, --timeout.
struct ConnectionFlags {
  std::string certificate;
  std::string key;
  std::string authority;
  absl::Duration timeout = absl::Seconds(5);
};
void Declare(ConnectionFlags* connection, base::FlagSet* flags);

// The workers that `words` name, each "HOST[:PORT]", a list of them separated by commas, or
// "dns:NAME[:PORT]": every address that the name has, which is looked up now. Without a port 7450.
// No word: the worker of this machine. InvalidArgument names a word that is none of these.
absl::StatusOr<std::vector<proto::WorkerClientOptions>> FindWorkers(
    const std::vector<std::string>& words, const ConnectionFlags& connection);

}  // namespace millrace::cli
