#include "cache/worker/served_connection.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "common/base/crc32c.h"
#include "common/base/page_cache.h"

namespace millrace::worker {
namespace {

using proto::FrameType;

// What is copied into a frame costs less than two more system calls up to this.
constexpr uint64_t kCopyMax = 32 * 1024;
// A read of the disk that a thread waits for itself: to hand it over takes as long.
constexpr uint64_t kDiskCopyMax = 16 * 1024;
// Fetched ahead of the byte that is being sent: enough for one connection of 10 Gbit/s to a store
// that answers within 10 ms.
constexpr uint64_t kAheadMax = 16 << 20;
// A load is fetched in parts of this, so that what is planned stays small.
constexpr uint64_t kLoadPart = 64 << 20;
// A fetch that this request had joined was given up by who started it: it is tried again.
constexpr int kJoinsMax = 8;
constexpr size_t kInputPiece = 16 * 1024;
constexpr absl::Duration kHelloTimeout = absl::Seconds(10);
constexpr absl::Duration kFrameTimeout = absl::Seconds(30);
constexpr absl::Duration kHandshakeTimeout = absl::Seconds(5);
// Blocks that are checked again because a client says they are damaged.
constexpr uint64_t kRecheckMax = 1024;

absl::Span<char> ThreadBuffer() {
  thread_local const std::unique_ptr<char[]> buffer(new char[proto::kDataMax]);
  return {buffer.get(), proto::kDataMax};
}

uint8_t FlagOf(fetch::Origin origin) {
  switch (origin) {
    case fetch::Origin::kStore:
      return proto::kFromStore;
    case fetch::Origin::kRemote:
      return proto::kFromPeer;
    case fetch::Origin::kLocal:
    case fetch::Origin::kShortCircuit:
      break;
  }
  return 0;
}

}  // namespace

absl::string_view RefusalName(Refusal refusal) {
  constexpr absl::string_view kNames[kRefusals] = {"frame",       "checksum", "sequence",
                                                   "version",     "cluster",  "credentials",
                                                   "certificate", "silence",  "limit"};
  return kNames[static_cast<size_t>(refusal)];
}

// What a request waits for, given by any thread.
struct ServedConnection::Arrival {
  base::Mutex mutex;
  bool done ABSL_GUARDED_BY(mutex) = false;
  absl::Status status ABSL_GUARDED_BY(mutex);
  fetch::BlockRef block ABSL_GUARDED_BY(mutex);
};

struct ServedConnection::Request {
  uint64_t id = 0;
  FrameType type = FrameType::kGet;
  fetch::Priority priority = fetch::Priority::kDemand;
  Files::Found found;
  uint64_t begin = 0;
  uint64_t next = 0;  // The first byte not sent, or not loaded.
  uint64_t end = 0;
  uint64_t ahead = 0;  // Fetches were started up to here.
  // Blocks in the window ahead that were missing when they were looked at: they are in the cache
  // because of this request, if not for it alone, and count as what they came from.
  absl::flat_hash_set<uint64_t> missed;
  std::shared_ptr<std::atomic<bool>> given_up = std::make_shared<std::atomic<bool>>(false);
  std::shared_ptr<Arrival> arrival;  // Null: it waits for nothing.
  bool holds_block = false;
  int joins = 0;
  absl::Duration began;
  absl::Duration waits_since;
  fetch::Origin farthest = fetch::Origin::kLocal;
  std::shared_ptr<tier::CachedFile> file;  // `data` is of this one.
  std::shared_ptr<const tier::OpenData> data;
  std::shared_ptr<const Files::Watch> watch;
  // Of kIndex: what is sent first, and then from the index's file.
  std::string text;
  std::shared_ptr<const index::Index> index;
};

ServedConnection::ServedConnection(uint64_t id, base::UniqueFd socket, bool is_unix,
                                   std::string peer, ConnectionContext* context)
    : id_(id),
      socket_(socket.get()),
      is_unix_(is_unix),
      peer_(std::move(peer)),
      context_(context),
      began_(context->clock->Monotonic()),
      pending_socket_(std::move(socket)) {
  overdue_ns_ = absl::ToInt64Nanoseconds(began_ + kHelloTimeout);
}

ServedConnection::~ServedConnection() { Close(); }

void ServedConnection::Shutdown() {
  shut_.store(true, std::memory_order_release);
  shutdown(socket_, SHUT_RDWR);
}

bool ServedConnection::Overdue(absl::Duration now) const {
  return absl::ToInt64Nanoseconds(now) >= overdue_ns_.load(std::memory_order_relaxed);
}

void ServedConnection::SetDeadline() {
  absl::Duration deadline = absl::InfiniteDuration();
  if (!greeted_) deadline = began_ + kHelloTimeout;
  if (!input_.empty()) deadline = std::min(deadline, input_since_ + kFrameTimeout);
  for (const RequestPtr& request : requests_) {
    if (request->arrival == nullptr || request->type != FrameType::kGet || request->found.fetch) {
      continue;
    }
    deadline = std::min(deadline, request->waits_since + context_->cached_patience);
  }
  overdue_ns_.store(absl::ToInt64Nanoseconds(deadline), std::memory_order_relaxed);
  busy_.store(!requests_.empty(), std::memory_order_relaxed);
}

// --- Reading ------------------------------------------------------------------------------------

ServedConnection::State ServedConnection::Serve() {
  bool progress = true;
  bool alive = !shut_.load(std::memory_order_acquire) && (stream_ != nullptr || Begin());
  while (alive && progress) {
    // Before every block: the client may want no more of them.
    alive = ReadInput() && AdvanceAll(&progress);
  }
  if (alive) {
    const absl::Duration now = context_->clock->Monotonic();
    const bool silent = (!greeted_ && now - began_ >= kHelloTimeout) ||
                        (!input_.empty() && now - input_since_ >= kFrameTimeout);
    if (silent) {
      alive = Refuse(Refusal::kSilence, absl::DeadlineExceededError("no whole frame came in time"));
    }
  }
  if (!alive) {
    Close();
    return State::kClosed;
  }
  SetDeadline();
  return State::kWaiting;
}

bool ServedConnection::Begin() {
  if (is_unix_ || context_->tls == nullptr) {
    stream_ = net::PlainStream(std::move(pending_socket_));
    return true;
  }
  // A handshake that fails closes its descriptor, whose number may be another connection's at once.
  // The one that the server knows stays open until this connection is gone.
  base::UniqueFd copy(fcntl(pending_socket_.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return false;
  absl::StatusOr<std::unique_ptr<net::Stream>> stream =
      context_->tls->Accept(std::move(copy), kHandshakeTimeout);
  if (!stream.ok()) {
    context_->host->Refused(Refusal::kCertificate, peer_, stream.status());
    return false;
  }
  stream_ = *std::move(stream);
  return true;
}

bool ServedConnection::ReadInput() {
  while (stream_->HasPending() || !stream_->Quiet()) {
    char piece[kInputPiece];
    const absl::StatusOr<size_t> got =
        stream_->Read(piece, sizeof(piece), context_->progress_timeout);
    if (!got.ok()) {
      if (absl::IsDataLoss(got.status())) {
        context_->host->Refused(Refusal::kFrame, peer_, got.status());
      }
      return false;
    }
    if (*got == 0) return false;
    if (input_.empty()) input_since_ = context_->clock->Monotonic();
    input_.append(piece, *got);
    if (!HandleFrames()) return false;
    if (*got < sizeof(piece) && !stream_->HasPending()) break;
  }
  return true;
}

bool ServedConnection::HandleFrames() {
  size_t used = 0;
  while (input_.size() - used >= proto::kHeaderSize) {
    const absl::string_view rest = absl::string_view(input_).substr(used);
    const absl::StatusOr<proto::Header> header =
        proto::DecodeHeader(rest.substr(0, proto::kHeaderSize));
    if (!header.ok()) return Refuse(Refusal::kFrame, header.status());
    // Nobody sends a worker bytes: not one of such a frame is received.
    if (header->type == FrameType::kData) {
      return Refuse(Refusal::kSequence, absl::InvalidArgumentError("a client that sends DATA"));
    }
    if (rest.size() < proto::kHeaderSize + header->length) break;
    const absl::string_view payload = rest.substr(proto::kHeaderSize, header->length);
    if (const absl::Status status = proto::CheckPayload(*header, payload); !status.ok()) {
      return Refuse(Refusal::kChecksum, status);
    }
    if (!HandleFrame(*header, payload)) return false;
    used += proto::kHeaderSize + header->length;
  }
  if (used > 0) {
    input_.erase(0, used);
    input_since_ = context_->clock->Monotonic();
    if (input_.empty()) input_.shrink_to_fit();
  }
  return true;
}

bool ServedConnection::HandleFrame(const proto::Header& header, absl::string_view payload) {
  if (greeted_ == (header.type == FrameType::kHello)) {
    return Refuse(Refusal::kSequence,
                  absl::InvalidArgumentError(greeted_ ? "a second HELLO" : "a frame before HELLO"));
  }
  switch (header.type) {
    case FrameType::kHello:
      return HandleHello(header.request, payload);
    case FrameType::kGet:
    case FrameType::kLoad:
      return HandleGet(header, payload);
    case FrameType::kIndex:
      return HandleIndex(header.request, payload);
    case FrameType::kOpen:
      return HandleOpen(header.request, payload);
    case FrameType::kRelease: {
      const absl::StatusOr<proto::Release> release = proto::DecodeRelease(payload);
      if (!release.ok()) return Refuse(Refusal::kFrame, release.status());
      if (leases_.erase(release->lease) > 0) context_->leases.fetch_sub(1);
      return true;
    }
    case FrameType::kCancel:
      return HandleCancel(header.request);
    case FrameType::kPing:
      return Send(proto::Encode(header.request, context_->welcome(), FrameType::kPong));
    case FrameType::kError:
      return HandleError(payload);
    case FrameType::kWelcome:
    case FrameType::kData:
    case FrameType::kDone:
    case FrameType::kOpened:
    case FrameType::kPong:
      break;
  }
  return Refuse(Refusal::kSequence,
                absl::InvalidArgumentError("a client that sends what only a worker does"));
}

bool ServedConnection::HandleHello(uint64_t request, absl::string_view payload) {
  const absl::StatusOr<proto::Hello> hello = proto::DecodeHello(payload);
  if (!hello.ok()) return Refuse(Refusal::kVersion, hello.status());
  if (hello->cluster != context_->cluster) {
    return Refuse(Refusal::kCluster,
                  absl::FailedPreconditionError("this worker belongs to another cluster"));
  }
  greeted_ = true;
  asker_ = hello->peer;
  last_request_ = request;
  return Send(proto::Encode(request, context_->welcome()));
}

// A client's ids grow: one that does not is a frame sent again by somebody else.
bool ServedConnection::CheckNew(uint64_t request) {
  if (request <= last_request_) {
    return Refuse(Refusal::kSequence, absl::InvalidArgumentError("a request id used before"));
  }
  last_request_ = request;
  return true;
}

bool ServedConnection::HandleGet(const proto::Header& header, absl::string_view payload) {
  const absl::StatusOr<proto::Get> get = proto::DecodeGet(payload);
  if (!get.ok()) return Refuse(Refusal::kFrame, get.status());
  if (!CheckNew(header.request)) return false;
  if (requests_.size() >= kRequestsMax) {
    return SendError(header.request,
                     absl::ResourceExhaustedError("too many requests on one connection"));
  }
  auto request = std::make_shared<Request>();
  request->id = header.request;
  request->type = header.type;
  request->priority = static_cast<fetch::Priority>(get->urgency);
  request->began = context_->clock->Monotonic();
  // A load is about what is not here.
  const bool load = header.type == FrameType::kLoad;
  const proto::Role role =
      load && get->role == proto::Role::kCached ? proto::Role::kOwner : get->role;
  absl::StatusOr<Files::Found> found = context_->files->Find(get->file, role, get->offset);
  if (!found.ok()) return SendError(header.request, found.status());
  request->found = *std::move(found);
  request->begin = request->next = request->ahead = get->offset;
  request->end = get->offset + get->length;
  if (load) {
    request->watch = context_->files->WatchStore(request->found, get->offset, get->length);
  }
  requests_.push_back(std::move(request));
  context_->requests.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool ServedConnection::HandleIndex(uint64_t id, absl::string_view payload) {
  const absl::StatusOr<proto::IndexGet> get = proto::DecodeIndexGet(payload);
  if (!get.ok()) return Refuse(Refusal::kFrame, get.status());
  if (!CheckNew(id)) return false;
  if (context_->files->FindSource(get->source) == nullptr) {
    return SendError(id, absl::NotFoundError("the worker was not started with this source"));
  }
  if (requests_.size() >= kRequestsMax) {
    return SendError(id, absl::ResourceExhaustedError("too many requests on one connection"));
  }
  absl::StatusOr<index::IndexAnswer> answer = context_->indexes->Get(
      get->source, get->have,
      absl::Milliseconds(std::min<uint64_t>(get->max_age_ms, std::numeric_limits<int64_t>::max())));
  if (!answer.ok()) return SendError(id, answer.status());
  auto request = std::make_shared<Request>();
  request->id = id;
  request->type = FrameType::kIndex;
  request->began = context_->clock->Monotonic();
  request->text = index::EncodeAnswerHead(answer->head);
  if (answer->delta != nullptr) request->text += *answer->delta;
  request->end = request->text.size();
  if (answer->index != nullptr) request->end += answer->head.bytes;
  request->index = std::move(answer->index);
  requests_.push_back(std::move(request));
  context_->requests.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool ServedConnection::HandleOpen(uint64_t id, absl::string_view payload) {
  const absl::StatusOr<proto::Open> open = proto::DecodeOpen(payload);
  if (!open.ok()) return Refuse(Refusal::kFrame, open.status());
  if (!is_unix_) {
    return Refuse(Refusal::kSequence,
                  absl::InvalidArgumentError("OPEN over a socket that carries no descriptor"));
  }
  if (!CheckNew(id)) return false;
  if (leases_.size() >= kLeasesMax) {
    return SendError(id, absl::ResourceExhaustedError("too many leases on one connection"));
  }
  const std::shared_ptr<tier::CachedFile> file = context_->files->FindComplete(open->file);
  if (file == nullptr) return SendError(id, absl::NotFoundError("not complete here"));
  // Leased first: what is evicted in between is no longer complete.
  std::shared_ptr<const void> lease = file->Lease();
  const absl::StatusOr<std::shared_ptr<const tier::OpenData>> data = file->Open();
  if (lease == nullptr || !data.ok() || file->evicted()) {
    return SendError(id, absl::NotFoundError("the file cannot be handed over"));
  }
  const uint64_t number = next_lease_++;
  leases_.emplace(number, std::move(lease));
  context_->leases.fetch_add(1);
  context_->host->HandedOver(open->file.source, open->file.size);
  // Where it cannot be sent the connection ends, and the lease with it.
  const absl::Status sent = stream_->WriteWithDescriptor(proto::Encode(id, proto::Opened{number}),
                                                         (*data)->fd(), context_->progress_timeout);
  return sent.ok();
}

bool ServedConnection::HandleCancel(uint64_t id) {
  const auto found = std::find_if(requests_.begin(), requests_.end(),
                                  [id](const RequestPtr& request) { return request->id == id; });
  if (found == requests_.end()) return true;
  GiveUp(**found);
  End(**found);
  requests_.erase(found);
  return SendError(id, absl::CancelledError("cancelled"));
}

bool ServedConnection::HandleError(absl::string_view payload) {
  const absl::StatusOr<proto::Error> error = proto::DecodeError(payload);
  if (!error.ok()) return Refuse(Refusal::kFrame, error.status());
  const Served served = std::exchange(last_served_, Served());
  if (!absl::IsDataLoss(proto::ToStatus(*error))) return true;
  // The client got other bytes than the cache vouched for: on the way, or from the disk.
  context_->host->RunApart([served] {
    const std::shared_ptr<tier::CachedFile> file = served.file.lock();
    if (file == nullptr) return;
    for (uint64_t block = served.first_block;
         block <= std::min(served.last_block, served.first_block + kRecheckMax); ++block) {
      file->Recheck(block);
    }
  });
  return true;
}

// --- Writing ------------------------------------------------------------------------------------

bool ServedConnection::Send(absl::string_view frame) {
  return stream_->Write(frame, context_->progress_timeout).ok();
}

bool ServedConnection::SendError(uint64_t request, const absl::Status& status) {
  return Send(proto::Encode(request, proto::ToError(status)));
}

bool ServedConnection::Refuse(Refusal refusal, const absl::Status& cause) {
  context_->host->Refused(refusal, peer_, cause);
  SendError(0, cause);
  return false;
}

ServedConnection::Step ServedConnection::Fail(Request& request, const absl::Status& status) {
  context_->files->Failed(request.found, status);
  return SendError(request.id, status) ? Step::kEnded : Step::kBroken;
}

ServedConnection::Step ServedConnection::SendData(Request& request, absl::string_view bytes,
                                                  fetch::Origin origin,
                                                  absl::optional<uint32_t> crc) {
  proto::Header header;
  header.length = static_cast<uint32_t>(bytes.size());
  header.type = FrameType::kData;
  header.flags = FlagOf(origin);
  if (request.next + bytes.size() == request.end) header.flags |= proto::kLast;
  header.request = request.id;
  header.offset = request.next;
  header.payload_crc = crc.has_value() ? *crc : base::Crc32c(0, bytes);
  const absl::Status sent = stream_->WriteParts({proto::EncodeHeader(header), bytes},
                                                /*more=*/false, context_->progress_timeout);
  if (!sent.ok()) return Step::kBroken;
  request.next += bytes.size();
  return Step::kProgress;
}

// --- Serving ------------------------------------------------------------------------------------

bool ServedConnection::AdvanceAll(bool* progress) {
  *progress = false;
  for (size_t i = 0; i < requests_.size();) {
    const RequestPtr request = requests_[i];
    const Step step = Advance(*request);
    if (step == Step::kBroken) return false;
    *progress |= step != Step::kWaiting;
    if (step == Step::kEnded) {
      End(*request);
      requests_.erase(requests_.begin() + static_cast<ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  return true;
}

ServedConnection::Step ServedConnection::Advance(Request& request) {
  switch (request.type) {
    case FrameType::kLoad:
      return AdvanceLoad(request);
    case FrameType::kIndex:
      return AdvanceIndex(request);
    default:
      return AdvanceGet(request);
  }
}

ServedConnection::Step ServedConnection::AdvanceGet(Request& request) {
  Step step;
  if (request.arrival != nullptr) {
    step = TakeArrived(request);
  } else {
    FetchAhead(request);
    step = SendPresent(request);
    if (step == Step::kWaiting) step = AwaitBlock(request);
  }
  if (step != Step::kProgress || request.next < request.end) return step;
  context_->host->Answered(request.found.source, request.farthest,
                           context_->clock->Monotonic() - request.began);
  return Step::kEnded;
}

void ServedConnection::FetchAhead(Request& request) {
  if (!request.found.fetch || request.ahead >= request.end ||
      request.ahead > request.next + kAheadMax / 2) {
    return;
  }
  const uint64_t end = std::min(request.end, request.next + kAheadMax);
  const uint64_t begin = std::max(request.ahead, request.next);
  request.ahead = end;
  const std::shared_ptr<tier::CachedFile> file = request.found.object->cached();
  if (begin >= end || (file != nullptr && file->Has(begin, end - begin))) return;
  for (uint64_t index = begin / tier::kBlockSize; index * tier::kBlockSize < end; ++index) {
    if (file == nullptr || !file->HasBlock(index)) request.missed.insert(index);
  }
  request.found.object->Prefetch(begin, end - begin, request.priority, nullptr, request.given_up);
}

ServedConnection::Step ServedConnection::SendPresent(Request& request) {
  const std::shared_ptr<tier::CachedFile> file = request.found.object->cached();
  const uint64_t index = request.next / tier::kBlockSize;
  if (file == nullptr || !file->HasBlock(index)) return Step::kWaiting;
  const uint64_t block_begin = index * tier::kBlockSize;
  const uint64_t block_end = std::min(block_begin + tier::kBlockSize, file->key().size);
  const uint64_t size = std::min(block_end, request.end) - request.next;
  // The other blocks that were missing tell where they came from.
  const fetch::Origin known =
      request.farthest == fetch::Origin::kLocal ? fetch::Origin::kStore : request.farthest;
  const fetch::Origin origin = request.missed.contains(index) ? known : fetch::Origin::kLocal;
  const auto count = [&] {
    request.missed.erase(index);
    request.farthest = std::max(request.farthest, origin);
    const uint64_t first = request.begin / tier::kBlockSize;
    if (index == first || last_served_.first_block != first) last_served_ = {file, first, index};
    last_served_.last_block = index;
    context_->host->Sent(request.found.source, origin, size);
    return Step::kProgress;
  };
  const auto lend = [&] {
    if (request.file == file) return true;
    absl::StatusOr<std::shared_ptr<const tier::OpenData>> data = file->OpenBlocks();
    if (!data.ok()) return false;
    request.data = *std::move(data);
    request.file = file;
    return true;
  };
  if (request.next == block_begin && size == block_end - block_begin && size > kCopyMax &&
      stream_->zero_copy()) {
    if (!lend()) return Step::kWaiting;
    const absl::optional<uint32_t> crc = file->BlockCrc(index);
    const absl::optional<uint64_t> pages = base::CachedPages(request.data->fd(), block_begin, size);
    if (crc.has_value() && pages.has_value() && *pages >= base::PagesOf(block_begin, size)) {
      proto::Header header;
      header.length = static_cast<uint32_t>(size);
      header.type = FrameType::kData;
      header.flags = FlagOf(origin);
      if (block_end == request.end) header.flags |= proto::kLast;
      header.request = request.id;
      header.offset = block_begin;
      header.payload_crc = *crc;
      absl::Status sent = stream_->WriteParts({proto::EncodeHeader(header)}, /*more=*/true,
                                              context_->progress_timeout);
      if (sent.ok()) {
        sent = stream_->SendFile(request.data->fd(), block_begin, size, /*more=*/false,
                                 context_->progress_timeout);
      }
      if (!sent.ok()) {
        // The frame is cut short: nothing can follow it. If it was the file's fault, the cache is
        // to know.
        if (!absl::IsUnavailable(sent) && !absl::IsDeadlineExceeded(sent)) file->Recheck(index);
        return Step::kBroken;
      }
      request.next = block_end;
      return count();
    }
  }
  const absl::Span<char> buffer = ThreadBuffer().subspan(0, size);
  const absl::StatusOr<absl::optional<size_t>> got = file->ReadNow(request.next, buffer);
  if (!got.ok()) return Step::kWaiting;
  if (!got->has_value()) {
    // The disk has to be asked. For a few KiB at random not for the whole block, which takes
    // several times as long, nor by another thread.
    if (size > kDiskCopyMax || !lend() || !file->BlockCrc(index).has_value() ||
        pread(request.data->fd(), buffer.data(), size, static_cast<off_t>(request.next)) !=
            static_cast<ssize_t>(size)) {
      return Step::kWaiting;
    }
  } else if (**got != size) {
    return Step::kWaiting;
  }
  // A whole block goes with the checksum it was kept with: a damaged file is the client's to find.
  const bool whole = request.next == block_begin && size == block_end - block_begin;
  const Step step = SendData(request, {buffer.data(), size}, origin,
                             whole ? file->BlockCrc(index) : absl::nullopt);
  return step == Step::kProgress ? count() : step;
}

ServedConnection::Step ServedConnection::AwaitBlock(Request& request) {
  const uint64_t index = request.next / tier::kBlockSize;
  if (!request.found.fetch) {
    const std::shared_ptr<tier::CachedFile> file = request.found.object->cached();
    const bool here = file != nullptr && file->HasBlock(index);
    if (!here && !context_->files->MayWait(asker_, request.found, request.next)) {
      return Fail(request, absl::NotFoundError("not here"));
    }
  }
  if (!context_->host->TakeBlock(id_)) return Step::kWaiting;
  request.holds_block = true;
  request.arrival = std::make_shared<Arrival>();
  request.waits_since = context_->clock->Monotonic();
  request.found.object->ReadBlock(
      {.index = index,
       .priority = request.priority,
       .fetch = request.found.fetch,
       .given_up = request.given_up},
      [arrival = request.arrival, weak = weak_from_this(),
       id = id_](absl::StatusOr<fetch::BlockRef> block) {
        {
          base::MutexLock lock(&arrival->mutex);
          arrival->status = block.status();
          if (block.ok()) arrival->block = *std::move(block);
          arrival->done = true;
        }
        // Who lives has a context.
        if (const std::shared_ptr<ServedConnection> self = weak.lock()) {
          self->context_->host->Wake(id);
        }
      });
  return TakeArrived(request);
}

ServedConnection::Step ServedConnection::TakeArrived(Request& request) {
  absl::Status status;
  fetch::BlockRef block;
  {
    base::MutexLock lock(&request.arrival->mutex);
    if (!request.arrival->done) {
      const absl::Duration waited = context_->clock->Monotonic() - request.waits_since;
      if (request.found.fetch || waited < context_->cached_patience) return Step::kWaiting;
      status = absl::NotFoundError("on its way for too long");
    } else {
      status = request.arrival->status;
      block = std::move(request.arrival->block);
    }
  }
  request.arrival.reset();
  request.holds_block = false;
  Step step = Step::kProgress;
  if (status.ok()) {
    request.joins = 0;
    step = SendBlock(request, *block);
  } else if (!absl::IsCancelled(status) || ++request.joins > kJoinsMax) {
    step = Fail(request, status);
  }
  block.reset();
  context_->host->GiveBlock();
  return step;
}

ServedConnection::Step ServedConnection::SendBlock(Request& request, const fetch::Block& block) {
  const uint64_t skip = request.next % tier::kBlockSize;
  const absl::string_view bytes = block.bytes().substr(skip, request.end - request.next);
  request.missed.erase(request.next / tier::kBlockSize);
  request.farthest = std::max(request.farthest, block.origin);
  const std::shared_ptr<tier::CachedFile> file = request.found.object->cached();
  const bool whole = bytes.size() == block.size;
  const Step step = SendData(
      request, bytes, block.origin,
      whole && file != nullptr ? file->BlockCrc(request.next / tier::kBlockSize) : absl::nullopt);
  if (step == Step::kProgress) {
    context_->host->Sent(request.found.source, block.origin, bytes.size());
  }
  return step;
}

ServedConnection::Step ServedConnection::AdvanceLoad(Request& request) {
  fetch::Object& object = *request.found.object;
  if (request.arrival != nullptr) {
    absl::Status status;
    {
      base::MutexLock lock(&request.arrival->mutex);
      if (!request.arrival->done) return Step::kWaiting;
      status = request.arrival->status;
    }
    request.arrival.reset();
    if (absl::IsCancelled(status) && ++request.joins <= kJoinsMax) return Step::kProgress;
    if (!status.ok()) return Fail(request, status);
    request.next = std::min(request.end, (request.next / kLoadPart + 1) * kLoadPart);
  }
  const uint64_t part_end = std::min(request.end, (request.next / kLoadPart + 1) * kLoadPart);
  const uint64_t part = part_end - request.next;
  const uint64_t missing = part - object.CachedBytes(request.next, part);
  // What no cache would keep is not worth a byte of the store.
  if (request.next >= request.end ||
      (missing > 0 && (object.Uncached() || !context_->files->HasRoom(missing)))) {
    proto::Done done;
    done.bytes = object.CachedBytes(request.begin, request.end - request.begin);
    done.fetched_from_store = Files::FromStore(*request.watch);
    return Send(proto::Encode(request.id, done)) ? Step::kEnded : Step::kBroken;
  }
  if (missing == 0) {
    request.next = part_end;
    return Step::kProgress;
  }
  request.arrival = std::make_shared<Arrival>();
  object.Prefetch(
      request.next, part, request.priority,
      [arrival = request.arrival, weak = weak_from_this(), id = id_](const absl::Status& status) {
        {
          base::MutexLock lock(&arrival->mutex);
          arrival->status = status;
          arrival->done = true;
        }
        if (const std::shared_ptr<ServedConnection> self = weak.lock()) {
          self->context_->host->Wake(id);
        }
      },
      request.given_up);
  return Step::kProgress;
}

ServedConnection::Step ServedConnection::AdvanceIndex(Request& request) {
  absl::string_view bytes =
      absl::string_view(request.text)
          .substr(std::min<uint64_t>(request.next, request.text.size()), proto::kDataMax);
  if (bytes.empty()) {
    const uint64_t size = std::min<uint64_t>(proto::kDataMax, request.end - request.next);
    const absl::Span<char> buffer = ThreadBuffer().subspan(0, size);
    const ssize_t got = pread(request.index->fd(), buffer.data(), size,
                              static_cast<off_t>(request.next - request.text.size()));
    if (got != static_cast<ssize_t>(size)) {
      const absl::Status status = absl::DataLossError("the index cannot be read");
      return SendError(request.id, status) ? Step::kEnded : Step::kBroken;
    }
    bytes = {buffer.data(), size};
  }
  const Step step = SendData(request, bytes, fetch::Origin::kLocal, absl::nullopt);
  return step == Step::kProgress && request.next == request.end ? Step::kEnded : step;
}

// --- Ending -------------------------------------------------------------------------------------

void ServedConnection::GiveUp(Request& request) {
  request.given_up->store(true, std::memory_order_relaxed);
  if (request.found.object != nullptr && request.next < request.end) {
    request.found.object->CancelPrefetch();
  }
  if (std::exchange(request.holds_block, false)) context_->host->GiveBlock();
}

void ServedConnection::End(Request&) { context_->requests.fetch_sub(1, std::memory_order_relaxed); }

void ServedConnection::Close() {
  for (const RequestPtr& request : requests_) {
    GiveUp(*request);
    End(*request);
  }
  requests_.clear();
  context_->leases.fetch_sub(leases_.size());
  leases_.clear();
  last_served_ = Served();
  busy_.store(false, std::memory_order_relaxed);
  if (stream_ != nullptr) stream_->Shutdown();
}

}  // namespace millrace::worker
