#include "cache/index/builder.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cache/store/memory_store.h"
#include "gtest/gtest.h"
#include "test/support/index_fixture.h"
#include "test/support/scripted_store.h"

namespace millrace::index {
namespace {

using ::millrace::test::BytesOf;
using ::millrace::test::Lines;
using ::millrace::test::ScriptedStore;

absl::StatusOr<std::shared_ptr<const Index>> Build(store::Store& store,
                                                   const BuildOptions& options = {}) {
  return BuildIndex(store, NewUnnamedFile("").value(), {.version = 1, .seed = 5}, options);
}

TEST(BuilderTest, FindsEverythingTheStoreHas) {
  store::MemoryStore store;
  for (int i = 0; i < 3000; ++i) {
    store.Put(absl::StrCat("a/", i % 7, "/b", i % 3, "/f", i), std::string(i % 10, 'x'));
  }
  store.Put("top", "x");
  BuildProgress progress;
  const auto index = Build(store, {.progress = &progress});
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ((*index)->header().entries, 3000u + 1 + 1 + 7 + 21);
  EXPECT_EQ((*index)->header().directories, 1u + 1 + 7 + 21);
  EXPECT_EQ(progress.entries, (*index)->header().entries);
  EXPECT_EQ(progress.directories, (*index)->header().directories);
  for (int i = 0; i < 3000; ++i) {
    const std::string path = absl::StrCat("a/", i % 7, "/b", i % 3, "/f", i);
    const auto found = (*index)->Find(path).value();
    ASSERT_TRUE(found.has_value()) << path;
    const store::Entry entry = store.Stat(path, {}).value();
    EXPECT_EQ(found->Version(), entry.version);
    EXPECT_EQ(found->size, entry.size);
    EXPECT_EQ(found->ToEntry().mtime, entry.mtime);
  }
}

TEST(BuilderTest, ThreadsAndMemoryMakeNoDifference) {
  store::MemoryStore store;
  for (int i = 0; i < 2000; ++i) store.Put(absl::StrCat("d", i % 40, "/f", i), "x");
  const std::string bytes = BytesOf(*Build(store, {.threads = 1}).value());
  EXPECT_TRUE(BytesOf(*Build(store, {.threads = 8}).value()) == bytes);
  EXPECT_TRUE(BytesOf(*Build(store, {.threads = 8, .sort_memory_bytes = 5000}).value()) == bytes);
}

TEST(BuilderTest, HostileNamesAreKeptAndNotEntered) {
  ScriptedStore store;
  const std::vector<std::string> hostile = {
      "", ".", "..", "a/b", std::string("a\0b", 3), std::string(256, 'x')};
  for (const std::string& name : hostile) {
    store.PutDirectory("", name);
    store.PutFile("", name, 1, "v");
  }
  store.PutDirectory("", "good");
  store.PutFile("good", "f", 1, "v");
  const auto index = Build(store);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ((*index)->header().entries, 2 * hostile.size() + 2);
  EXPECT_EQ((*index)->header().directories, 2u);
  EXPECT_EQ(store.list_calls(), 2u);
}

TEST(BuilderTest, DirectoryThatGoesAwayIsLeftOut) {
  ScriptedStore store;
  store.PutDirectory("", "gone");
  store.SetNotFound("gone");
  const auto index = Build(store);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_FALSE((*index)->List("gone", std::nullopt, 10).value().has_value());
}

TEST(BuilderTest, ErrorsOfTheStoreEndTheBuild) {
  ScriptedStore store;
  store.PutDirectory("", "d");
  store.FailLists(absl::PermissionDeniedError("no"), 1);
  EXPECT_TRUE(absl::IsPermissionDenied(Build(store).status()));
  ScriptedStore rootless;
  rootless.SetNotFound("");
  EXPECT_TRUE(absl::IsNotFound(Build(rootless).status()));
}

TEST(BuilderTest, WhatHasNoEndIsAnError) {
  ScriptedStore pages(10);
  pages.Fill("", 100);
  pages.RepeatToken();
  EXPECT_TRUE(absl::IsInvalidArgument(Build(pages).status()));
  ScriptedStore deep;
  std::string path;
  for (int i = 0; i < 600; ++i) {
    deep.PutDirectory(path, "d");
    path = path.empty() ? "d" : absl::StrCat(path, "/d");
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Build(deep).status()));
}

TEST(BuilderTest, MoreEntriesThanAllowedAreAnError) {
  ScriptedStore store;
  store.Fill("", 2000);
  EXPECT_TRUE(absl::IsResourceExhausted(Build(store, {.entries_max = 1999}).status()));
  EXPECT_TRUE(Build(store, {.entries_max = 2000}).ok());
}

TEST(BuilderTest, ACancelledBuildEnds) {
  ScriptedStore store;
  store.PutDirectory("", "d");
  store.CloseListGate();
  std::atomic<bool> cancelled{false};
  absl::Status status;
  std::thread build([&] { status = Build(store, {.cancelled = &cancelled}).status(); });
  store.AwaitLists(1);
  cancelled = true;
  store.OpenGates();
  build.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

}  // namespace
}  // namespace millrace::index
