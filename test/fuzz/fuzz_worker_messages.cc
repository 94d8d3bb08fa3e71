// Fuzzes the requests of the control port: bytes as each message, then as each request. The first
// byte says which.
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/proto/worker_messages.h"

namespace {

namespace proto = millrace::proto;

// What is accepted holds its own limits: it is accepted again, as the same.
template <typename Message>
void Check(const std::string& bytes) {
  Message message;
  if (!message.ParseFromString(bytes)) return;
  const auto request = proto::FromWire(message);
  if (!request.ok()) {
    if (request.status().message().empty()) __builtin_trap();
    return;
  }
  const auto again = proto::FromWire(proto::ToWire(*request));
  if (!again.ok()) __builtin_trap();
  if (proto::ToWire(*again).SerializeAsString() != proto::ToWire(*request).SerializeAsString()) {
    __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0:
      Check<proto::wire::LocateRequest>(bytes);
      break;
    case 1:
      Check<proto::wire::StatRequest>(bytes);
      break;
    case 2:
      Check<proto::wire::ListRequest>(bytes);
      break;
    case 3:
      Check<proto::wire::LoadRequest>(bytes);
      break;
    default:
      Check<proto::wire::EvictRequest>(bytes);
      break;
  }
  return 0;
}
