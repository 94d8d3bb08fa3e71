// A ledger's memory file as it is when its process dies: a copy, made while the old process still
// runs and may change its own.
#pragma once

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "common/base/unique_fd.h"
#include "fuse/vfs/ledger.h"

namespace millrace::test {

class LedgerFile {
 public:
  LedgerFile() : fd_(memfd_create("ledger", MFD_CLOEXEC)) {}
  explicit LedgerFile(absl::string_view bytes) : LedgerFile() { Write(bytes); }

  int fd() const { return fd_.get(); }
  base::UniqueFd Dup() const { return base::UniqueFd(dup(fd_.get())); }

  // Small, so that a copy of all of it is cheap.
  static constexpr vfs::Ledger::Size kSize = {.bytes = 2 << 20, .slots = 1024};
  absl::StatusOr<std::unique_ptr<vfs::Ledger>> TryOpen(
      const vfs::Ledger::Size& size = kSize) const {
    return vfs::Ledger::Open(Dup(), size);
  }
  std::unique_ptr<vfs::Ledger> Open(const vfs::Ledger::Size& size = kSize) const {
    auto ledger = TryOpen(size);
    return ledger.ok() ? *std::move(ledger) : nullptr;
  }

  std::string Bytes() const {
    struct stat st = {};
    fstat(fd_.get(), &st);
    std::string bytes(static_cast<size_t>(st.st_size), '\0');
    bytes.resize(static_cast<size_t>(pread(fd_.get(), bytes.data(), bytes.size(), 0)));
    return bytes;
  }
  LedgerFile Copy() const { return LedgerFile(Bytes()); }

 private:
  void Write(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = write(fd_.get(), bytes.data(), bytes.size());
      if (written <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(written));
    }
  }

  base::UniqueFd fd_;
};

}  // namespace millrace::test
