#include "fuse/vfs/node_table.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "fuse/vfs/name_rules.h"

namespace millrace::vfs {
namespace {

constexpr size_t kHexDigits = 32;
// Lookups stop counting here, and such a node is then never freed: better than a count that wraps.
constexpr uint64_t kLookupsMax = 0xfffffff0;

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

bool PackHex(absl::string_view version, char* packed) {
  if (version.size() != kHexDigits) return false;
  for (size_t i = 0; i < kHexDigits; i += 2) {
    const int high = HexValue(version[i]);
    const int low = HexValue(version[i + 1]);
    if (high < 0 || low < 0) return false;
    packed[i / 2] = static_cast<char>(high << 4 | low);
  }
  return true;
}

std::string UnpackHex(absl::string_view packed) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string version;
  version.reserve(kHexDigits);
  for (const char c : packed) {
    version.push_back(kDigits[static_cast<uint8_t>(c) >> 4]);
    version.push_back(kDigits[static_cast<uint8_t>(c) & 15]);
  }
  return version;
}

std::string DerivedVersion(int64_t mtime_ns, uint64_t size) {
  return absl::StrCat(mtime_ns, "-", size);
}

}  // namespace

Node* Node::New(const NodeSpec& spec, NodeId id) {
  char packed[kHexDigits / 2];
  absl::string_view version = spec.version;
  uint8_t flags = 0;
  if (PackHex(version, packed)) {
    version = absl::string_view(packed, sizeof(packed));
    flags |= kVersionHex;
  } else if (!version.empty() && version == DerivedVersion(spec.mtime_ns, spec.size)) {
    version = absl::string_view();
    flags |= kVersionDerived;
  }
  if (spec.is_directory) flags |= kDirectory;
  if (spec.is_source_root) flags |= kSourceRoot;
  return New(id, spec.parent, spec.size, spec.mtime_ns, flags, spec.name, version);
}

Node* Node::New(NodeId id, Node* parent, uint64_t size, int64_t mtime_ns, uint8_t flags,
                absl::string_view name, absl::string_view kept_version) {
  const size_t bytes = offsetof(Node, text_) + name.size() + kept_version.size();
  Node* const node = new (::operator new(std::max(bytes, sizeof(Node)))) Node;
  node->id_ = id;
  node->parent_ = parent;
  node->size_ = size;
  node->mtime_ns_.store(mtime_ns, std::memory_order_relaxed);
  node->version_size_ = static_cast<uint16_t>(kept_version.size());
  node->name_size_ = static_cast<uint8_t>(name.size());
  node->flags_ = flags;
  if (!name.empty()) std::memcpy(node->text_, name.data(), name.size());
  if (!kept_version.empty()) {
    std::memcpy(node->text_ + name.size(), kept_version.data(), kept_version.size());
  }
  return node;
}

NodeRecord Node::ToRecord() const {
  return {.id = id_,
          .parent = parent_->id(),
          .size = size_,
          .mtime_ns = mtime_ns(),
          .flags = flags_,
          .name = name(),
          .version = absl::string_view(text_ + name_size_, version_size_)};
}

Node* Node::FromRecord(const NodeRecord& record, Node* parent) {
  constexpr uint8_t kAllFlags = kDirectory | kSourceRoot | kVersionHex | kVersionDerived;
  const auto has = [&](uint8_t flag) { return (record.flags & flag) != 0; };
  if (record.id <= kRootNode || has(static_cast<uint8_t>(~kAllFlags))) return nullptr;
  if (HiddenByName(record.name) != Hidden::kNo) return nullptr;
  if (has(kDirectory) ? !record.version.empty() || has(kVersionHex) || has(kVersionDerived)
                      : has(kSourceRoot)) {
    return nullptr;
  }
  if (has(kVersionHex) && (has(kVersionDerived) || record.version.size() != kHexDigits / 2)) {
    return nullptr;
  }
  if (has(kVersionDerived) && !record.version.empty()) return nullptr;
  return New(record.id, parent, record.size, record.mtime_ns, record.flags, record.name,
             record.version);
}

void Node::Delete(Node* node) {
  node->~Node();
  ::operator delete(node);
}

std::string Node::version() const {
  if ((flags_ & kVersionDerived) != 0) return DerivedVersion(mtime_ns(), size_);
  const absl::string_view kept(text_ + name_size_, version_size_);
  return (flags_ & kVersionHex) != 0 ? UnpackHex(kept) : std::string(kept);
}

Attributes Node::attributes() const {
  return {.id = id_,
          .is_directory = is_directory(),
          .size = is_directory() ? 0 : size_,
          .mtime = absl::FromUnixNanos(mtime_ns())};
}

bool Node::VersionIs(const NodeSpec& spec) const {
  if ((flags_ & kVersionDerived) != 0) {
    return spec.version == DerivedVersion(mtime_ns(), size_);
  }
  const absl::string_view kept(text_ + name_size_, version_size_);
  if ((flags_ & kVersionHex) == 0) return spec.version == kept;
  char packed[kHexDigits / 2];
  return PackHex(spec.version, packed) && kept == absl::string_view(packed, sizeof(packed));
}

bool Node::Is(const NodeSpec& spec) const {
  if (parent_ != spec.parent || is_directory() != spec.is_directory || name() != spec.name) {
    return false;
  }
  return is_directory() || (size_ == spec.size && VersionIs(spec));
}

std::string PathOf(const Node* node, const Node** source_root) {
  std::vector<absl::string_view> names;
  size_t bytes = 0;
  while (!node->is_source_root() && node->parent() != nullptr) {
    names.push_back(node->name());
    bytes += node->name().size() + 1;
    node = node->parent();
  }
  *source_root = node;
  std::string path;
  path.reserve(bytes);
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    if (!path.empty()) path.push_back('/');
    path.append(name->data(), name->size());
  }
  return path;
}

NodeTable::~NodeTable() {
  for (Shard& shard : shards_) {
    const base::MutexLock lock(&shard.mutex);
    for (Node* const node : shard.nodes) Node::Delete(node);
  }
}

Node* NodeTable::FindOrCreate(const NodeSpec& spec) {
  NodeId id = spec.id;
  while (true) {
    Shard& shard = ShardOf(id);
    const base::MutexLock lock(&shard.mutex);
    const auto found = shard.nodes.find(id);
    if (found == shard.nodes.end()) {
      Node* const node = Node::New(spec, id);
      node->counts_.store(Node::kPin, std::memory_order_relaxed);
      if (spec.parent != nullptr) Pin(spec.parent);
      shard.nodes.insert(node);
      return node;
    }
    if ((*found)->Is(spec)) {
      Pin(*found);
      return *found;
    }
    ++id;  // A collision: the next free id, never 0 ("none") or the root's.
    if (id <= kRootNode) id = kRootNode + 1;
  }
}

Node* NodeTable::Restore(const Ledger::Restored& restored, Node* parent) {
  const NodeRecord& record = restored.node;
  Shard& shard = ShardOf(record.id);
  const base::MutexLock lock(&shard.mutex);
  Node* node = nullptr;
  const auto found = shard.nodes.find(record.id);
  if (found != shard.nodes.end()) {
    node = *found;
    const bool same = node->parent() == parent && node->flags_ == record.flags &&
                      node->name() == record.name && node->size() == record.size;
    if (!node->is_source_root() || !same) return nullptr;
    if (node->record_.load(std::memory_order_relaxed) != 0) return nullptr;
  } else {
    if (!parent->is_directory() || (record.flags & Node::kSourceRoot) != 0) return nullptr;
    node = Node::FromRecord(record, parent);
    if (node == nullptr) return nullptr;
    Pin(parent);
    shard.nodes.insert(node);
  }
  const uint64_t lookups = std::min(restored.lookups, kLookupsMax);
  node->counts_.fetch_add(Node::kPin + lookups * Node::kLookup, std::memory_order_relaxed);
  node->record_.store(restored.record, std::memory_order_release);
  return node;
}

Ledger::Index NodeTable::Keep(Node* node) {
  // A node's parent is recorded before it; the root has no record, it is always there.
  absl::InlinedVector<Node*, 4> missing;
  for (Node* at = node; at->parent() != nullptr; at = at->parent()) {
    if (at->record_.load(std::memory_order_acquire) != 0) break;
    missing.push_back(at);
  }
  for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
    const Node* const parent = (*at)->parent();
    Shard& shard = ShardOf((*at)->id());
    const base::MutexLock lock(&shard.mutex);
    if ((*at)->record_.load(std::memory_order_relaxed) != 0) continue;
    const bool orphan = parent->record_.load(std::memory_order_acquire) == Node::kNoRecord;
    const Ledger::Index record = orphan ? 0 : ledger_->Add((*at)->ToRecord());
    (*at)->record_.store(record == 0 ? Node::kNoRecord : record, std::memory_order_release);
  }
  const Ledger::Index record = node->record_.load(std::memory_order_acquire);
  return record == Node::kNoRecord ? 0 : record;
}

void NodeTable::Erase(Shard& shard, Node* node) {
  shard.nodes.erase(node->id());
  const Ledger::Index record = node->record_.load(std::memory_order_relaxed);
  if (record != 0 && record != Node::kNoRecord) ledger_->Remove(record);
}

Node* NodeTable::Find(NodeId id) {
  Shard& shard = ShardOf(id);
  const base::MutexLock lock(&shard.mutex);
  const auto found = shard.nodes.find(id);
  if (found == shard.nodes.end()) return nullptr;
  Pin(*found);
  return *found;
}

bool NodeTable::GetAttributes(NodeId id, Attributes* attributes) {
  Shard& shard = ShardOf(id);
  const base::MutexLock lock(&shard.mutex);
  const auto found = shard.nodes.find(id);
  if (found == shard.nodes.end()) return false;
  *attributes = (*found)->attributes();
  return true;
}

void NodeTable::AddLookups(Node* node, uint64_t count) {
  if (node->lookups() + count >= kLookupsMax) count = kLookupsMax - node->lookups();
  if (ledger_ != nullptr) {
    const Ledger::Index record = RecordOf(node);
    if (record != 0) ledger_->AddLookups(record, count);
  }
  node->counts_.fetch_add(count * Node::kLookup, std::memory_order_relaxed);
}

void NodeTable::SetMtime(Node* node, int64_t mtime_ns) {
  node->mtime_ns_.store(mtime_ns, std::memory_order_relaxed);
  const Ledger::Index record = node->record_.load(std::memory_order_acquire);
  if (record != 0 && record != Node::kNoRecord) ledger_->SetMtime(record, mtime_ns);
}

void NodeTable::MarkListed(Node* node) {
  const Ledger::Index record = node->record_.load(std::memory_order_acquire);
  if (record != 0 && record != Node::kNoRecord) ledger_->MarkListed(record);
}

bool NodeTable::Listed(const Node* node) const {
  const Ledger::Index record = node->record_.load(std::memory_order_acquire);
  return record != 0 && record != Node::kNoRecord && ledger_->At(record).listed;
}

void NodeTable::Unpin(Node* node) {
  while (node != nullptr) {
    // Not the last reference: no lock. The last one goes under the shard's lock, where no one can
    // find the node any more once it is erased.
    uint64_t counts = node->counts_.load(std::memory_order_relaxed);
    while (counts != Node::kPin) {
      if (node->counts_.compare_exchange_weak(counts, counts - Node::kPin,
                                              std::memory_order_acq_rel)) {
        return;
      }
    }
    {
      Shard& shard = ShardOf(node->id());
      const base::MutexLock lock(&shard.mutex);
      if (node->counts_.fetch_sub(Node::kPin, std::memory_order_acq_rel) != Node::kPin) return;
      Erase(shard, node);
    }
    Node* const parent = node->parent();
    Node::Delete(node);
    node = parent;
  }
}

void NodeTable::Forget(NodeId id, uint64_t count) {
  Node* dead = nullptr;
  {
    Shard& shard = ShardOf(id);
    const base::MutexLock lock(&shard.mutex);
    const auto found = shard.nodes.find(id);
    if (found == shard.nodes.end()) return;
    Node* const node = *found;
    const uint64_t held = node->lookups();
    if (held >= kLookupsMax) return;
    count = std::min(count, held);
    const Ledger::Index record = node->record_.load(std::memory_order_acquire);
    if (record != 0 && record != Node::kNoRecord) ledger_->TakeLookups(record, count);
    const uint64_t taken = count * Node::kLookup;
    if (node->counts_.fetch_sub(taken, std::memory_order_acq_rel) == taken) {
      Erase(shard, node);
      dead = node;
    }
  }
  if (dead == nullptr) return;
  Node* const parent = dead->parent();
  Node::Delete(dead);
  if (parent != nullptr) Unpin(parent);
}

size_t NodeTable::size() const {
  size_t sum = 0;
  for (const Shard& shard : shards_) {
    const base::MutexLock lock(&shard.mutex);
    sum += shard.nodes.size();
  }
  return sum;
}

}  // namespace millrace::vfs
