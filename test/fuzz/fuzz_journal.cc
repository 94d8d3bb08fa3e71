// Fuzzes the parser of a tier's journal: a cache directory is input like any other. The first byte
// chooses the pieces in which the rest arrives; what is seen must not depend on them.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "cache/tier/journal.h"

namespace {

using millrace::tier::FileRef;
using millrace::tier::JournalParser;
using millrace::tier::JournalReport;

// Touches every byte it is shown.
class Toucher : public millrace::tier::JournalVisitor {
 public:
  void OnSession(absl::string_view boot_id) override { Touch(1, boot_id); }
  void OnClean() override { Touch(2, ""); }
  void OnSource(uint64_t hash, absl::string_view url) override { Touch(hash, url); }
  void OnFile(const FileRef& file, uint64_t size, absl::string_view path,
              absl::string_view version) override {
    Touch(file.source + size, path);
    Touch(4, version);
  }
  void OnBlocks(const FileRef&, uint64_t first, absl::Span<const uint32_t> crcs,
                bool unverified) override {
    for (const uint32_t crc : crcs) Touch(crc, "");
    Touch(first + (unverified ? 1 : 0), "");
  }
  void OnDropped(const FileRef&, uint64_t first, uint64_t count) override {
    Touch(first + count, "");
  }
  void OnRemoved(const FileRef& file) override { Touch(file.source, ""); }

  uint64_t sum() const { return sum_; }

 private:
  void Touch(uint64_t number, absl::string_view text) {
    sum_ = sum_ * 31 + number;
    for (const char c : text) sum_ = sum_ * 31 + static_cast<uint8_t>(c);
  }
  uint64_t sum_ = 0;
};

uint64_t Parse(absl::string_view bytes, size_t piece, JournalReport* report) {
  Toucher toucher;
  JournalParser parser(&toucher);
  for (size_t at = 0; at < bytes.size(); at += piece) parser.Feed(bytes.substr(at, piece));
  *report = parser.Finish();
  return toucher.sum();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  JournalReport whole;
  JournalReport pieces;
  const uint64_t sum = Parse(bytes, std::max<size_t>(1, bytes.size()), &whole);
  if (Parse(bytes, 1 + data[0], &pieces) != sum) __builtin_trap();
  if (whole.valid_end != pieces.valid_end || whole.records != pieces.records) __builtin_trap();
  if (whole.usable && whole.valid_end > bytes.size()) __builtin_trap();
  return 0;
}
