#include "cache/fetch/scattered_read.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace millrace::fetch {

void ScatteredRead::Run() {
  // Its memory is what was reserved: one block, used as a buffer from its beginning on.
  std::shared_ptr<Block> block = object_->shared_->pool->Acquire();
  const auto room = [&]() -> absl::Span<char> {
    return {block->data + block->size, fetched_.size - block->size};
  };
  const auto sink = [&](absl::string_view piece) {
    if (piece.size() > fetched_.size - block->size) return false;  // More than it was asked for.
    char* const to = block->data + block->size;
    if (piece.data() != to) std::memcpy(to, piece.data(), piece.size());
    block->size += static_cast<uint32_t>(piece.size());
    return true;
  };
  store::BytesFrom from = store::BytesFrom::kStore;
  store::GetRequest request = object_->Request(fetched_.offset, fetched_.size, Priority::kDemand);
  request.from = &from;
  const store::BodyRoom room_ref = room;
  request.room = &room_ref;
  store::CallOptions call;
  call.cancelled = &cancelled_;
  absl::Status status = object_->store_->Get(request, sink, call);
  if (status.ok() && block->size < fetched_.size) {
    status = absl::UnavailableError("the store sent less than it promised");
  }
  if (!status.ok()) {
    block.reset();
    std::move(done_)(object_->Explain(fetched_.offset, status));
    return;
  }
  ReadResult result;
  result.pieces = {{block->data + (wanted_.offset - fetched_.offset), wanted_.size}};
  result.size = wanted_.size;
  result.origin = OriginFrom(from);
  std::move(done_)(std::move(result));
}

void ScatteredRead::Drop() { std::move(done_)(absl::CancelledError("the read was given up")); }

}  // namespace millrace::fetch
