// A store in memory that does what a test tells it to: pages of a given size, calls held at a gate
// until the test lets them go, failures, and names no file system would have.
//
// Threads. Safe for concurrent use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cache/store/store.h"
#include "common/base/mutex.h"

namespace millrace::test {

class ScriptedStore : public store::Store {
 public:
  explicit ScriptedStore(size_t page_entries = 1000) : page_entries_(page_entries) {}

  // Contents. An entry of the same name and kind is replaced, unless `again` asks for a duplicate.
  // Directories above are not made by themselves: PutDirectory shows one in its parent.
  void PutFile(const std::string& directory, const std::string& name, uint64_t size,
               const std::string& version);
  void PutEntry(const std::string& directory, store::Entry entry, bool again = false);
  void PutDirectory(const std::string& directory, const std::string& name);
  void Remove(const std::string& directory, const std::string& name);
  void Fill(const std::string& directory, size_t files);  // "file-0000000.jpg", …

  // Faults. The next `count` calls of the kind fail with `status`.
  void FailLists(absl::Status status, size_t count);
  void FailStats(absl::Status status, size_t count);
  void SetNotFound(const std::string& directory);  // Its listing says so from now on.
  void RepeatToken() { SetFlag(&repeat_token_); }  // Pages without an end.

  // Gates. Once closed, each call of the kind waits until it is let through.
  void CloseListGate() { SetFlag(&list_gate_.closed); }
  void CloseStatGate() { SetFlag(&stat_gate_.closed); }
  void LetLists(size_t count) { Let(&list_gate_, count); }
  void LetStats(size_t count) { Let(&stat_gate_, count); }
  void OpenGates();
  // Returns when `count` calls wait at the gate.
  void AwaitLists(size_t count) { Await(&list_gate_, count); }
  void AwaitStats(size_t count) { Await(&stat_gate_, count); }

  size_t list_calls() const;
  size_t stat_calls() const;
  size_t stats_at_once_max() const;

  absl::string_view kind() const override { return "scripted"; }
  absl::StatusOr<store::ListPage> List(const std::string& path, const std::string& token,
                                       size_t max_entries, const store::CallOptions& call) override;
  absl::StatusOr<store::Entry> Stat(const std::string& path,
                                    const store::CallOptions& call) override;
  absl::Status Get(const store::GetRequest& request, store::BodySink sink,
                   const store::CallOptions& call) override;
  absl::StatusOr<std::vector<store::Entry>> Sample(size_t max_objects,
                                                   const store::CallOptions& call) override;

 private:
  struct Gate {
    bool closed = false;
    size_t permits = 0;
    size_t waiting = 0;
  };
  struct Fault {
    absl::Status status;
    size_t count = 0;
  };

  void SetFlag(bool* flag);
  void Let(Gate* gate, size_t count);
  void Await(Gate* gate, size_t count);
  absl::Status Pass(Gate* gate, Fault* fault, const store::CallOptions& call)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t page_entries_;
  mutable base::Mutex mutex_;
  base::CondVar changed_;
  std::map<std::string, std::vector<store::Entry>> directories_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, bool> not_found_ ABSL_GUARDED_BY(mutex_);
  Gate list_gate_ ABSL_GUARDED_BY(mutex_);
  Gate stat_gate_ ABSL_GUARDED_BY(mutex_);
  Fault list_fault_ ABSL_GUARDED_BY(mutex_);
  Fault stat_fault_ ABSL_GUARDED_BY(mutex_);
  bool repeat_token_ ABSL_GUARDED_BY(mutex_) = false;
  size_t list_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t stat_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t stats_now_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t stats_at_once_max_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace millrace::test
