// What both ends of a gRPC connection of ours have in common: mutual TLS from files, where gRPC's
// own log goes, statuses. Only for code that speaks gRPC itself.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/support/status.h"

namespace millrace::proto {

// PEM files of mutual TLS: all three or none. They are read again when they changed, for new
// connections.
struct GrpcTls {
  std::string certificate;
  std::string key;
  std::string authority;  // What the other side's certificate must come from.
  // How often to look, in whole seconds. A secret of Kubernetes takes a minute to arrive anyway.
  absl::Duration look_every = absl::Seconds(5);
};

// Without files: plain text. InvalidArgument for one or two files; for a file that cannot be read
// or is no PEM, its name and the cause.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const GrpcTls& tls);
// The same; the server's certificate must be for the name that the channel connects to.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const GrpcTls& tls);

// gRPC's complaints go to our log as warnings, one a second at most: a peer that fails a handshake
// again and again must not fill it. Idempotent, thread-safe; to be called before gRPC is used.
void UseOurLog();

// Code and message, both ways. Messages are cut to a length that a header of HTTP/2 carries.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace millrace::proto
