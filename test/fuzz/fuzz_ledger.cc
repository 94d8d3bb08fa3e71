// Fuzzes the take-over of a ledger: its memory file was written by a process that died, perhaps of
// another version. An input is the first 48 bytes of the file, the header, and what follows its
// 4096.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "fuse/vfs/ledger.h"
#include "fuse/vfs/store_tree.h"
#include "test/support/scripted_store.h"

namespace {

using millrace::vfs::Ledger;

constexpr size_t kFileBytes = 64 << 10;
constexpr size_t kHeaderFields = 48;
constexpr size_t kHeaderBytes = 4096;

millrace::base::UniqueFd FileOf(const uint8_t* data, size_t size) {
  millrace::base::UniqueFd fd(memfd_create("fuzz", MFD_CLOEXEC));
  const size_t header = std::min(size, kHeaderFields);
  const size_t rest = std::min(size - header, kFileBytes - kHeaderBytes);
  if (ftruncate(fd.get(), kFileBytes) != 0 ||
      pwrite(fd.get(), data, header, 0) != static_cast<ssize_t>(header) ||
      pwrite(fd.get(), data + header, rest, kHeaderBytes) != static_cast<ssize_t>(rest)) {
    __builtin_trap();
  }
  return fd;
}

// All of it must be usable whatever was in it.
void Use(Ledger* ledger) {
  millrace::vfs::TreeOptions options;
  options.sources = {{{"", "memory://a"}, std::make_shared<millrace::test::ScriptedStore>()}};
  options.refresh = absl::InfiniteDuration();
  options.refresh_thread = false;
  options.threads = 1;
  options.ledger = ledger;
  millrace::vfs::StoreTree tree(options);
  std::vector<uint64_t> ids;
  ledger->ForEachNode([&](const Ledger::Restored& node) { ids.push_back(node.node.id); });
  for (const uint64_t id : ids) {
    if (!tree.GetAttributes(id).ok()) __builtin_trap();
    (void)tree.File(id).ok();
    (void)tree.Parent(id);
  }
  for (const uint64_t id : ids) tree.Forget(id, UINT32_MAX);
  const Ledger::Index record = ledger->Add({.id = 2, .parent = 1, .name = "a"});
  if (record != 0) ledger->Remove(record);
  const Ledger::Slot slot = ledger->AddHandle({.node = 2, .unique = 4});
  if (!ledger->RemoveHandle(slot, 2, 4)) __builtin_trap();
  std::vector<Ledger::Slot> backing;
  ledger->ForEachBacking([&](Ledger::Slot one, uint64_t, int) { backing.push_back(one); });
  for (const Ledger::Slot one : backing) ledger->RemoveBacking(one);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto ledger = Ledger::Open(FileOf(data, size), {.bytes = 32 << 10, .slots = 8});
  if (!ledger.ok()) return 0;
  if ((*ledger)->profile() > millrace::vfs::Profile::kAuto) __builtin_trap();
  Use(ledger->get());
  return 0;
}
