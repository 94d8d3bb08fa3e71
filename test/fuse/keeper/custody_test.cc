// Unit tests of the custody protocol: frames that are hostile, and the daemon's end against a
// keeper that the test plays.
#include "fuse/keeper/custody.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::keeper {
namespace {

using ::testing::HasSubstr;

base::UniqueFd SomeFile() { return base::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

// ---- Frames ----

class FrameTest : public ::testing::Test {
 protected:
  FrameTest() {
    SocketPair pair = *NewSocketPair();
    ours_ = std::move(pair.ours);
    theirs_ = std::move(pair.theirs);
  }
  absl::Status Received() { return ReceiveFrame(ours_.get(), /*wait=*/false).status(); }

  base::UniqueFd ours_, theirs_;
};

TEST_F(FrameTest, ComesWithItsDescriptors) {
  Frame frame;
  frame.type = FrameType::kBackingOpen;
  frame.serial = 7;
  frame.a = 42;
  frame.SetText("text");
  const base::UniqueFd file = SomeFile();
  ASSERT_TRUE(SendFrame(theirs_.get(), frame, {file.get()}, false).ok());
  const absl::StatusOr<std::optional<Message>> message = ReceiveFrame(ours_.get(), false);
  ASSERT_TRUE(message.ok()) << message.status();
  ASSERT_TRUE(message->has_value());
  EXPECT_EQ((*message)->frame.a, 42u);
  EXPECT_EQ((*message)->frame.Text(), "text");
  ASSERT_EQ((*message)->descriptors.size(), 1u);
  EXPECT_EQ(fcntl((*message)->descriptors[0].get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_FALSE(ReceiveFrame(ours_.get(), false)->has_value());
}

TEST_F(FrameTest, TextIsCutAndEnded) {
  Frame frame;
  frame.SetText(std::string(1000, 'x'));
  EXPECT_EQ(frame.Text().size(), Frame::kTextMax - 1);
  frame.text.fill('y');
  EXPECT_EQ(frame.Text().size(), Frame::kTextMax);
}

TEST_F(FrameTest, WrongSizesAreRefused) {
  const std::string bytes(sizeof(Frame) + 100, '\0');
  for (const size_t size : {size_t{1}, sizeof(Frame) - 1, sizeof(Frame) + 1, bytes.size()}) {
    ASSERT_EQ(send(theirs_.get(), bytes.data(), size, 0), static_cast<ssize_t>(size));
    EXPECT_TRUE(absl::IsInvalidArgument(Received())) << size;
  }
}

TEST_F(FrameTest, WrongMagicAndUnknownTypesAreRefused) {
  Frame frame;
  frame.magic = 1;
  ASSERT_TRUE(SendFrame(theirs_.get(), frame, {}, false).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Received()));
  frame.magic = Frame::kMagic;
  for (const uint32_t type : {0u, 20u, 0xffffffffu}) {
    frame.type = static_cast<FrameType>(type);
    ASSERT_TRUE(SendFrame(theirs_.get(), frame, {}, false).ok());
    EXPECT_TRUE(absl::IsInvalidArgument(Received())) << type;
  }
}

TEST_F(FrameTest, DescriptorsTooManyOrTooFewAreRefusedAndClosed) {
  const auto open_descriptors = [] {
    int count = 0;
    for (int fd = 0; fd < 256; ++fd) count += fcntl(fd, F_GETFD) >= 0;
    return count;
  };
  const base::UniqueFd file = SomeFile();
  const int before = open_descriptors();
  for (const size_t count : {0u, 2u, 7u, 8u}) {
    Frame frame;
    frame.type = FrameType::kBackingOpen;
    const std::vector<int> descriptors(count, file.get());
    ASSERT_TRUE(SendFrame(theirs_.get(), frame, descriptors, false).ok());
    EXPECT_TRUE(absl::IsInvalidArgument(Received())) << count;
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(FrameTest, TheEndAndAPeerThatDoesNotReadAreTold) {
  while (true) {
    const absl::Status sent = SendFrame(ours_.get(), Frame(), {}, /*wait=*/false);
    if (sent.ok()) continue;
    EXPECT_TRUE(absl::IsResourceExhausted(sent)) << sent;
    break;
  }
  theirs_.Reset();
  EXPECT_TRUE(absl::IsUnavailable(SendFrame(ours_.get(), Frame(), {}, false)));
  EXPECT_TRUE(absl::IsUnavailable(Received()));
}

TEST_F(FrameTest, APeerThatDiedWithAFrameUnreadTakesNothingWithIt) {
  const base::UniqueFd file = SomeFile();
  Frame frame;
  frame.type = FrameType::kBackingOpen;
  ASSERT_TRUE(SendFrame(theirs_.get(), frame, {file.get()}, false).ok());
  const absl::StatusOr<std::optional<Message>> kept = ReceiveFrame(ours_.get(), false);
  ASSERT_TRUE(kept.ok() && kept->has_value());
  const int fd = (*kept)->descriptors[0].get();
  ASSERT_TRUE(SendFrame(ours_.get(), Frame(), {}, false).ok());
  theirs_.Reset();
  // ECONNRESET: what the stack still holds of the frame before is no descriptor of this one.
  EXPECT_TRUE(absl::IsUnavailable(Received()));
  EXPECT_GE(fcntl(fd, F_GETFD), 0);
}

// ---- The daemon's end ----

class CustodyTest : public ::testing::Test, public CustodyEvents {
 protected:
  CustodyTest() {
    SocketPair pair = *NewSocketPair();
    keeper_ = std::move(pair.ours);
    daemon_ = std::move(pair.theirs);
    const timeval timeout = {10, 0};
    setsockopt(keeper_.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  }

  void OnDrain() override { drained_.set_value(); }
  void OnFinish() override { finished_.set_value(); }
  std::vector<std::pair<uint64_t, int>> BackingIds() override { return {{11, 1}, {12, 2}}; }

  Message Next() {
    absl::StatusOr<std::optional<Message>> message = ReceiveFrame(keeper_.get(), /*wait=*/true);
    EXPECT_TRUE(message.ok() && message->has_value()) << message.status();
    return message.ok() && message->has_value() ? **std::move(message) : Message();
  }
  void Answer(const Message& to, Frame frame, const std::vector<int>& descriptors = {}) {
    frame.serial = to.frame.serial;
    EXPECT_TRUE(SendFrame(keeper_.get(), frame, descriptors, true).ok());
  }
  void Say(FrameType type) {
    Frame frame;
    frame.type = type;
    EXPECT_TRUE(SendFrame(keeper_.get(), frame, {}, true).ok());
  }

  void Connect(uint64_t flags) {
    std::thread welcome([this, flags] {
      const Message hello = Next();
      EXPECT_EQ(hello.frame.type, FrameType::kHello);
      EXPECT_EQ(hello.frame.a, kProtocolVersion);
      EXPECT_EQ(hello.frame.Text(), "1.2.3");
      Frame frame;
      frame.type = FrameType::kWelcome;
      frame.a = flags;
      Answer(hello, frame, {memory_.fd(), nodes_.get()});
    });
    absl::StatusOr<std::unique_ptr<Custody>> custody =
        Custody::Connect(std::move(daemon_), "1.2.3");
    welcome.join();
    ASSERT_TRUE(custody.ok()) << custody.status();
    custody_ = *std::move(custody);
  }

  // A listening socket in the abstract name space.
  base::UniqueFd Listen() {
    base::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    address_.sun_family = AF_UNIX;
    const std::string name = "millrace-custody-test-" + std::to_string(getpid());
    std::memcpy(address_.sun_path + 1, name.data(), name.size());
    EXPECT_EQ(bind(socket.get(), reinterpret_cast<sockaddr*>(&address_), sizeof(address_)), 0);
    EXPECT_EQ(listen(socket.get(), 8), 0);
    return socket;
  }

  void OpenGranted() {
    const base::UniqueFd listener = Listen();
    const base::UniqueFd file = SomeFile();
    std::thread grant([&] {
      Frame frame;
      frame.type = FrameType::kGrant;
      frame.a = kCanBack;
      Answer(Next(), frame, {file.get(), file.get(), listener.get(), file.get(), file.get()});
    });
    const absl::StatusOr<Grant> granted = custody_->Open();
    grant.join();
    ASSERT_TRUE(granted.ok()) << granted.status();
    EXPECT_TRUE(granted->can_back);
  }

  base::UniqueFd ConnectAdopter() {
    base::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const timeval timeout = {10, 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    EXPECT_EQ(connect(socket.get(), reinterpret_cast<sockaddr*>(&address_), sizeof(address_)), 0);
    return socket;
  }

  base::UniqueFd keeper_, daemon_;
  sockaddr_un address_ = {};
  SessionMemory memory_ = *SessionMemory::Create();
  base::UniqueFd nodes_{memfd_create("nodes", MFD_CLOEXEC)};
  std::unique_ptr<Custody> custody_;
  std::promise<void> drained_, finished_;
};

TEST_F(CustodyTest, AFirstDaemonFromHelloToServing) {
  Connect(0);
  EXPECT_FALSE(custody_->take_over());
  EXPECT_FALSE(custody_->standby());
  OpenGranted();
  std::thread keeper([this] {
    const Message serving = Next();
    EXPECT_EQ(serving.frame.type, FrameType::kServing);
    Answer(serving, Frame());
    const Message backing = Next();
    EXPECT_EQ(backing.frame.type, FrameType::kBackingOpen);
    EXPECT_EQ(backing.frame.a, 77u);
    Frame id;
    id.a = 5;
    Answer(backing, id);
    const Message refused = Next();
    Answer(refused, ErrorReply(absl::ResourceExhaustedError("no more")));
    EXPECT_EQ(Next().frame.type, FrameType::kBackingClose);
  });
  EXPECT_TRUE(custody_->Serving().ok());
  const base::UniqueFd file = SomeFile();
  EXPECT_EQ(*custody_->BackingOpen(77, file.get()), 5);
  EXPECT_TRUE(absl::IsResourceExhausted(custody_->BackingOpen(78, file.get()).status()));
  custody_->BackingClose(77);
  keeper.join();
}

TEST_F(CustodyTest, AnswersFindTheirQuestionsInAnyOrder) {
  Connect(kTakeOver);
  EXPECT_TRUE(custody_->take_over());
  const base::UniqueFd file = SomeFile();
  std::thread keeper([this] {
    std::vector<Message> questions;
    for (int i = 0; i < 8; ++i) questions.push_back(Next());
    for (auto each = questions.rbegin(); each != questions.rend(); ++each) {
      Frame id;
      id.a = each->frame.a + 1000;
      Answer(*each, id);
    }
  });
  std::vector<std::thread> callers;
  for (uint64_t node = 1; node <= 8; ++node) {
    callers.emplace_back([this, &file, node] {
      const absl::StatusOr<int> id = custody_->BackingOpen(node, file.get());
      EXPECT_TRUE(id.ok() && *id == static_cast<int>(node) + 1000) << id.status();
    });
  }
  for (std::thread& caller : callers) caller.join();
  keeper.join();
}

TEST_F(CustodyTest, AStandByWaitsForGo) {
  Connect(kTakeOver | kStandby);
  EXPECT_TRUE(custody_->standby());
  std::thread keeper([this] {
    EXPECT_EQ(Next().frame.type, FrameType::kPrepared);
    Say(FrameType::kGo);
  });
  EXPECT_TRUE(custody_->AwaitGo().ok());
  keeper.join();
}

TEST_F(CustodyTest, EventsThatComeEarlyAreToldLater) {
  Connect(0);
  Say(FrameType::kDrain);
  Say(FrameType::kFinish);
  custody_->Listen(this);
  drained_.get_future().get();
  finished_.get_future().get();
}

TEST_F(CustodyTest, WithoutAKeeperCallsFailAtOnce) {
  Connect(0);
  const base::UniqueFd file = SomeFile();
  std::thread keeper([this] {
    Next();
    keeper_.Reset();  // Dies with a question unanswered.
  });
  EXPECT_TRUE(absl::IsUnavailable(custody_->BackingOpen(1, file.get()).status()));
  keeper.join();
  EXPECT_TRUE(absl::IsUnavailable(custody_->BackingOpen(2, file.get()).status()));
  EXPECT_TRUE(absl::IsUnavailable(custody_->EndMount()));
  EXPECT_FALSE(custody_->has_keeper());
}

TEST_F(CustodyTest, AKeeperThatTalksNonsenseIsNone) {
  Connect(0);
  ASSERT_EQ(send(keeper_.get(), "nonsense", 8, 0), 8);
  const base::UniqueFd file = SomeFile();
  EXPECT_TRUE(absl::IsUnavailable(custody_->BackingOpen(1, file.get()).status()));
}

TEST_F(CustodyTest, RefusesAnotherVersionsWords) {
  std::thread keeper(
      [this] { Answer(Next(), ErrorReply(absl::FailedPreconditionError("version 9"))); });
  const absl::Status status = Custody::Connect(std::move(daemon_), "1.2.3").status();
  keeper.join();
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("version 9"));
}

TEST_F(CustodyTest, WhoLingersHasNothingMoreToDoWithKeepers) {
  Connect(0);
  OpenGranted();
  custody_->Listen(this);
  custody_->Drained(/*lingers=*/true);
  const Message drained = Next();
  EXPECT_EQ(drained.frame.type, FrameType::kDrained);
  EXPECT_EQ(drained.frame.a, kLingers);
  const base::UniqueFd file = SomeFile();
  EXPECT_TRUE(absl::IsUnavailable(custody_->BackingOpen(1, file.get()).status()));
  // Its socket for adopters was closed, the last one that listened.
  const base::UniqueFd adopter(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  EXPECT_NE(connect(adopter.get(), reinterpret_cast<sockaddr*>(&address_), sizeof(address_)), 0);
  Say(FrameType::kFinish);  // The keeper may still end it.
  finished_.get_future().get();
}

TEST_F(CustodyTest, AnotherKeeperGetsEverything) {
  Connect(0);
  OpenGranted();
  custody_->Listen(this);
  keeper_.Reset();
  // One that does not say what it wants, and one of another version, are sent away.
  {
    const base::UniqueFd rude = ConnectAdopter();
    ASSERT_TRUE(SendFrame(rude.get(), Frame(), {}, true).ok());
    EXPECT_FALSE(ReceiveFrame(rude.get(), true).ok());
    const base::UniqueFd newer = ConnectAdopter();
    Frame adopt;
    adopt.type = FrameType::kAdopt;
    adopt.a = kProtocolVersion + 1;
    ASSERT_TRUE(SendFrame(newer.get(), adopt, {}, true).ok());
    const absl::StatusOr<std::optional<Message>> answer = ReceiveFrame(newer.get(), true);
    ASSERT_TRUE(answer.ok() && answer->has_value());
    EXPECT_TRUE(absl::IsFailedPrecondition(StatusOfReply((*answer)->frame)));
  }
  EXPECT_FALSE(custody_->has_keeper());
  keeper_ = ConnectAdopter();
  Frame adopt;
  adopt.type = FrameType::kAdopt;
  adopt.a = kProtocolVersion;
  ASSERT_TRUE(SendFrame(keeper_.get(), adopt, {}, true).ok());
  const Message session = Next();
  EXPECT_EQ(session.frame.type, FrameType::kSession);
  EXPECT_EQ(session.frame.b, 2u);
  EXPECT_EQ(session.frame.Text(), "1.2.3");
  EXPECT_EQ(session.descriptors.size(), 7u);
  EXPECT_EQ(Next().frame.a, 11u);
  EXPECT_EQ(Next().frame.b, 2u);
  // It is the keeper now.
  Say(FrameType::kDrain);
  drained_.get_future().get();
  EXPECT_TRUE(custody_->has_keeper());
}

}  // namespace
}  // namespace millrace::keeper
