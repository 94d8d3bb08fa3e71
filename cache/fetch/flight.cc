#include "cache/fetch/flight.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace millrace::fetch {
namespace {

// Blocks given to the cache with one write, ending at a multiple of it: 2 MiB, so that a tmpfs that
// has huge pages fills each with one copy. Written block by block it clears the page first.
constexpr uint64_t kKeptAtOnce = (2 << 20) / kBlockSize;

}  // namespace

void Flight::Run() {
  BufferPool* const pool = object_->shared_->pool;
  uint64_t reserved = count_;
  uint64_t next = first_;
  std::shared_ptr<Block> block;
  Object::Arrived arrived;
  arrived.first = first_;
  const auto keep = [&] {
    Object::Arrived kept = std::exchange(arrived, Object::Arrived());
    arrived.first = next;
    object_->Keep(std::move(kept));
  };
  store::BytesFrom from = store::BytesFrom::kStore;
  // The rest of the block that arrives; empty behind the last.
  const auto room = [&]() -> absl::Span<char> {
    if (next > last_block()) return {};
    if (block == nullptr) {
      block = pool->Acquire();
      --reserved;
    }
    return {block->data + block->size, object_->BlockBytes(next) - block->size};
  };
  const auto sink = [&](absl::string_view piece) {
    while (!piece.empty()) {
      const absl::Span<char> rest = room();
      if (rest.empty()) return false;  // A store that sends more than it was asked for.
      const size_t taken = std::min(piece.size(), rest.size());
      if (piece.data() != rest.data()) std::memcpy(rest.data(), piece.data(), taken);
      block->size += taken;
      block->origin = std::max(block->origin, OriginFrom(from));
      piece.remove_prefix(taken);
      if (taken == rest.size()) {
        object_->fetched_from_.store(block->origin, std::memory_order_relaxed);
        object_->OnBlock(std::exchange(block, nullptr), priority_, &arrived);
        if (++next % kKeptAtOnce == 0) keep();
      }
    }
    return true;
  };

  const uint64_t offset = first_ * kBlockSize;
  const uint64_t end = std::min((last_block() + 1) * kBlockSize, object_->key_.size);
  store::GetRequest request = object_->Request(offset, end - offset, priority_);
  request.from = &from;
  const store::BodyRoom room_ref = room;
  request.room = &room_ref;
  store::CallOptions call;
  call.cancelled = &abandoned_;
  absl::Status status = object_->store_->Get(request, sink, call);
  if (status.ok() && next <= last_block()) {
    status = absl::UnavailableError("the store sent less than it promised");
  }
  keep();
  block.reset();
  pool->Unreserve(reserved);
  if (!status.ok()) object_->OnFlightEnd(this, next, status);
}

void Flight::Drop() {
  object_->OnFlightEnd(this, first_, absl::CancelledError("the read was given up"));
}

}  // namespace millrace::fetch
