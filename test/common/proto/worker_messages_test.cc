// Tests of the control port's messages: what is refused, and that values survive the wire.
#include "common/proto/worker_messages.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::proto {
namespace {

using ::testing::HasSubstr;

template <typename Message>
auto OverTheWire(const Message& message) {
  decltype(ToWire(message)) received;
  EXPECT_TRUE(received.ParseFromString(ToWire(message).SerializeAsString()));
  return FromWire(received);
}

TEST(WorkerMessagesTest, RequestsSurviveTheWire) {
  const auto locate = OverTheWire(LocateRequest{"s3://b", "a/b", 5, 6});
  ASSERT_TRUE(locate.ok());
  EXPECT_EQ(locate->source, "s3://b");
  EXPECT_EQ(locate->path, "a/b");
  EXPECT_EQ(locate->offset, 5);
  EXPECT_EQ(locate->length, 6);
  const auto list = OverTheWire(ListRequest{"s3://b", "", std::string("t\0\xff", 3), 7});
  ASSERT_TRUE(list.ok());
  EXPECT_EQ(list->token, std::string("t\0\xff", 3));
  EXPECT_EQ(list->entries_max, 7);
  const auto load = OverTheWire(LoadRequest{"s3://b", {"a", "caf\xe9/b"}});
  ASSERT_TRUE(load.ok());
  EXPECT_EQ(load->paths[1], "caf\xe9/b");
  EXPECT_EQ(OverTheWire(StatRequest{"s", "p"})->path, "p");
  EXPECT_EQ(OverTheWire(EvictRequest{"s", ""})->path, "");
}

TEST(WorkerMessagesTest, RefusesPathsThatLeaveTheSource) {
  for (const char* path : {"/a", "a/", "a//b", "..", "a/../b", ".", "a/./b", "/"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(FromWire(ToWire(StatRequest{"s", path})).status())) << path;
    EXPECT_TRUE(absl::IsInvalidArgument(FromWire(ToWire(EvictRequest{"s", path})).status()))
        << path;
    EXPECT_TRUE(absl::IsInvalidArgument(FromWire(ToWire(ListRequest{"s", path, "", 0})).status()))
        << path;
    const absl::Status status = FromWire(ToWire(LoadRequest{"s", {"good", path}})).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("paths[1]")) << path;
  }
  EXPECT_TRUE(FromWire(ToWire(StatRequest{"s", "..a/b.."})).ok());
  EXPECT_FALSE(FromWire(ToWire(StatRequest{"s", std::string("a\0b", 3)})).ok());
}

TEST(WorkerMessagesTest, RefusesWhatIsBeyondTheLimits) {
  const std::string longest(kPathMax, 'x');
  EXPECT_TRUE(FromWire(ToWire(StatRequest{longest, longest})).ok());
  EXPECT_FALSE(FromWire(ToWire(StatRequest{"s", longest + "x"})).ok());
  EXPECT_FALSE(FromWire(ToWire(StatRequest{longest + "x", "p"})).ok());
  EXPECT_FALSE(FromWire(ToWire(StatRequest{"", "p"})).ok());
  EXPECT_FALSE(FromWire(ToWire(StatRequest{std::string("s\0", 2), "p"})).ok());
  EXPECT_TRUE(FromWire(ToWire(ListRequest{"s", "", "", kEntriesMax})).ok());
  EXPECT_FALSE(FromWire(ToWire(ListRequest{"s", "", "", kEntriesMax + 1})).ok());
  EXPECT_FALSE(FromWire(ToWire(ListRequest{"s", "", std::string(kTokenMax + 1, 't'), 0})).ok());
  LoadRequest load{"s", std::vector<std::string>(kPathsMax, "p")};
  EXPECT_TRUE(FromWire(ToWire(load)).ok());
  load.paths.push_back("p");
  EXPECT_FALSE(FromWire(ToWire(load)).ok());
  EXPECT_TRUE(FromWire(ToWire(LocateRequest{"s", "p", kFileSizeMax - 1, 1})).ok());
  EXPECT_FALSE(FromWire(ToWire(LocateRequest{"s", "p", kFileSizeMax, 1})).ok());
  EXPECT_FALSE(FromWire(ToWire(LocateRequest{"s", "p", UINT64_MAX, UINT64_MAX})).ok());
  EXPECT_FALSE(FromWire(ToWire(LocateRequest{"s", "", 0, 0})).ok());
}

TEST(WorkerMessagesTest, AnswersSurviveTheWire) {
  WorkerReport report;
  report.id = "worker-0";
  report.cluster = "c";
  report.version = "1.2";
  report.started_unix = 12;
  report.draining = true;
  report.extent_size = 64;
  report.replicas = 2;
  report.tiers = {{"ssd", "/t\xff", 1, 2, 3, 4}};
  report.sources = {{"s3://b", "s3://b/\xff"}};
  report.hits = {{"local", 5, 6}, {"store", 7, 8}};
  report.members = {{"h:1", "worker-1", 9, true, true, ""}, {"h:2", "", 0, false, false, "gone"}};
  report.connections = 10;
  report.memory_used_bytes = 11;
  report.memory_limit_bytes = 12;
  report.resident_bytes = 13;
  EXPECT_FALSE(OverTheWire(report).drain.has_value());
  report.drain = DrainProgress{true, 1, 2, 3, 4, 5, true, 6.5, "e\xff"};
  const WorkerReport received = OverTheWire(report);
  // Compared as the wire has them: a field that one direction forgets differs from the original.
  EXPECT_EQ(ToWire(received).SerializeAsString(), ToWire(report).SerializeAsString());
  EXPECT_EQ(received.tiers[0].files_complete, 4);
  EXPECT_EQ(received.members[1].last_error, "gone");
  ASSERT_TRUE(received.drain.has_value());
  EXPECT_EQ(received.drain->bytes_per_second, 6.5);
  EXPECT_EQ(received.drain->last_error, "e\xff");

  LoadProgress load{1, 2, 3, 4, 5, 6, true, "x"};
  const LoadProgress loaded = OverTheWire(load);
  EXPECT_EQ(loaded.bytes_refused, 6);
  EXPECT_EQ(loaded.last_error, "x");
  ListReply list{{{"caf\xe9", true, 1, absl::FromUnixNanos(-5), "v"}}, "next"};
  const ListReply listed = OverTheWire(list);
  EXPECT_EQ(listed.entries[0].name, "caf\xe9");
  EXPECT_TRUE(listed.entries[0].directory);
  EXPECT_EQ(listed.entries[0].mtime, absl::FromUnixNanos(-5));
  LocateReply locate{"v", 1, 2, {{3, 4, {"a", "b"}, 5}}};
  EXPECT_THAT(OverTheWire(locate).extents[0].workers, ::testing::ElementsAre("a", "b"));
  EXPECT_EQ(OverTheWire(StatReply{{"n"}, 5}).present_bytes, 5);
}

}  // namespace
}  // namespace millrace::proto
