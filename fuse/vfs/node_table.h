// The nodes of a tree: what the kernel's node ids stand for.
//
// Why so compact. A mount shows directories of millions of files, and every one is a node as long
// as its directory's listing is kept. A node is one allocation of 48 bytes and its name and
// version, which in the common forms (32 hexadecimal digits; "<mtime ns>-<size>") take 16 and 0
// bytes. It holds no path: a parent pointer and a name give it.
//
// Lifetime. A node lives while it is pinned (by a listing, a child, a Directory, a caller) or
// while the kernel holds lookups of it. Everything but the counts and a directory's mtime is
// constant.
//
// With a ledger, a node has a record there from the first lookup the kernel gets of it until it is
// deleted, so that a successor of this process has the same nodes.
//
// Threads. NodeTable is safe for concurrent use; locks are per shard of the ids and held for a few
// instructions.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "common/base/mutex.h"
#include "fuse/vfs/ledger.h"
#include "fuse/vfs/tree.h"

namespace millrace::vfs {

class Node;

// What a node is made of.
struct NodeSpec {
  NodeId id = 0;           // Wanted; another is taken when a different live node has it.
  Node* parent = nullptr;  // Null only for the mount's root.
  absl::string_view name;  // At most 255 bytes.
  bool is_directory = false;
  bool is_source_root = false;  // `size` is then the index of the source.
  uint64_t size = 0;
  int64_t mtime_ns = 0;
  absl::string_view version;  // At most 65,535 bytes; empty for directories.
};

class Node {
 public:
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  NodeId id() const { return id_; }
  Node* parent() const { return parent_; }
  absl::string_view name() const { return absl::string_view(text_, name_size_); }
  bool is_directory() const { return (flags_ & kDirectory) != 0; }
  bool is_source_root() const { return (flags_ & kSourceRoot) != 0; }
  size_t source() const { return static_cast<size_t>(size_); }  // REQUIRES: is_source_root().
  std::string version() const;
  uint64_t size() const { return size_; }
  int64_t mtime_ns() const { return mtime_ns_.load(std::memory_order_relaxed); }
  Attributes attributes() const;
  uint64_t lookups() const { return counts_.load(std::memory_order_relaxed) >> kLookupShift; }

  // Whether a listing's entry of this parent is this node: same name, kind, version and size. A
  // directory is the same whatever its mtime.
  bool Is(const NodeSpec& spec) const;

 private:
  friend class NodeTable;

  enum Flag : uint8_t {
    kDirectory = 1,
    kSourceRoot = 2,
    kVersionHex = 4,      // 32 lower-case hexadecimal digits, kept as 16 bytes.
    kVersionDerived = 8,  // "<mtime ns>-<size>", kept as nothing.
  };
  // A node that found no room in the ledger, and is not tried again.
  static constexpr Ledger::Index kNoRecord = UINT32_MAX;
  // Pins in the low half, lookups in the high half: one word, so that "none of either" is one test.
  static constexpr int kLookupShift = 32;
  static constexpr uint64_t kPin = 1;
  static constexpr uint64_t kLookup = uint64_t{1} << kLookupShift;

  Node() = default;
  static Node* New(const NodeSpec& spec, NodeId id);
  static Node* New(NodeId id, Node* parent, uint64_t size, int64_t mtime_ns, uint8_t flags,
                   absl::string_view name, absl::string_view kept_version);
  NodeRecord ToRecord() const;
  // Null for what New could not have made.
  static Node* FromRecord(const NodeRecord& record, Node* parent);
  static void Delete(Node* node);
  bool VersionIs(const NodeSpec& spec) const;

  std::atomic<uint64_t> counts_ = 0;
  NodeId id_ = 0;
  Node* parent_ = nullptr;  // Pinned by this node.
  uint64_t size_ = 0;
  std::atomic<int64_t> mtime_ns_ = 0;
  uint16_t version_size_ = 0;  // As kept.
  uint8_t name_size_ = 0;
  uint8_t flags_ = 0;
  std::atomic<Ledger::Index> record_ = 0;
  char text_[];  // Name, then version.
};

// The path of `node` below its source's root, and the root's node. REQUIRES: `node` is pinned and
// at or below a source's root.
std::string PathOf(const Node* node, const Node** source_root);

class NodeTable {
 public:
  // `ledger` may be null.
  explicit NodeTable(Ledger* ledger = nullptr) : ledger_(ledger) {}
  // REQUIRES: every pin was given back. Nodes that the kernel still holds are freed.
  ~NodeTable();

  // The live node of this identity, or a new one; pinned once for the caller. A new node pins
  // `spec.parent`, which the caller has pinned.
  Node* FindOrCreate(const NodeSpec& spec);

  static bool IsDirectory(const NodeRecord& record) {
    return (record.flags & Node::kDirectory) != 0;
  }
  // A node that a predecessor had, with its lookups; pinned once for the caller. A source's root is
  // there already. Null for a record that no node can be made of. REQUIRES: before any other
  // thread.
  Node* Restore(const Ledger::Restored& restored, Node* parent);

  // The node, pinned, or null.
  Node* Find(NodeId id);

  bool GetAttributes(NodeId id, Attributes* attributes);

  // REQUIRES: the caller holds a pin, or knows one that outlasts the call.
  void Pin(Node* node) { node->counts_.fetch_add(Node::kPin, std::memory_order_relaxed); }
  void AddLookups(Node* node, uint64_t count);
  // Directories only: their mtime is no part of their identity.
  void SetMtime(Node* node, int64_t mtime_ns);
  // The kernel may hold a listing of this directory.
  void MarkListed(Node* node);
  bool Listed(const Node* node) const;

  void Unpin(Node* node);

  // Takes `count` lookups back; more than there are, and unknown ids, do no harm.
  void Forget(NodeId id, uint64_t count);

  size_t size() const;

 private:
  // Ids are hashes already.
  static NodeId IdOf(const Node* node) { return node->id(); }
  static NodeId IdOf(NodeId id) { return id; }
  struct Hash {
    using is_transparent = void;
    template <typename T>
    size_t operator()(const T& key) const {
      return IdOf(key);
    }
  };
  struct Equal {
    using is_transparent = void;
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return IdOf(a) == IdOf(b);
    }
  };
  struct alignas(64) Shard {
    mutable base::Mutex mutex;
    absl::flat_hash_set<Node*, Hash, Equal> nodes ABSL_GUARDED_BY(mutex);
  };
  static constexpr int kShardBits = 6;

  Shard& ShardOf(NodeId id) { return shards_[id >> (64 - kShardBits)]; }
  // The record of a node, made if it has none; 0: none.
  Ledger::Index RecordOf(Node* node) {
    const Ledger::Index record = node->record_.load(std::memory_order_acquire);
    if (record == 0) return Keep(node);
    return record == Node::kNoRecord ? 0 : record;
  }
  Ledger::Index Keep(Node* node);
  // With the shard's lock, so that a node of the same id comes into the ledger after this one left.
  void Erase(Shard& shard, Node* node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard.mutex);

  Ledger* const ledger_;

  std::array<Shard, size_t{1} << kShardBits> shards_;
};

}  // namespace millrace::vfs
