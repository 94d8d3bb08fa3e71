#include "cache/tier/format.h"

#include "absl/strings/str_format.h"
#include "common/base/hash.h"

namespace millrace::tier {
namespace {

int HexValue(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  return -1;
}

}  // namespace

FileId FileId::Of(absl::string_view path, absl::string_view version) {
  FileId id;
  FromName(base::StableHashHex({path, version}), &id);
  return id;
}

bool FileId::FromName(absl::string_view name, FileId* id) {
  if (name.size() != 2 * id->bytes.size()) return false;
  for (size_t i = 0; i < id->bytes.size(); ++i) {
    const int high = HexValue(name[2 * i]);
    const int low = HexValue(name[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    id->bytes[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

std::string FileId::Name() const {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string name(2 * bytes.size(), '0');
  for (size_t i = 0; i < bytes.size(); ++i) {
    name[2 * i] = kDigits[bytes[i] >> 4];
    name[2 * i + 1] = kDigits[bytes[i] & 15];
  }
  return name;
}

std::string SourceDirectoryName(uint64_t hash) { return absl::StrFormat("%016x", hash); }

}  // namespace millrace::tier
