// Fuzzes what a client does with a difference between two indexes. An input is such a difference;
// its header is made one that fits a small index, from which it leads back to itself, so that its
// body is reached.
#include <cstdint>
#include <memory>
#include <string>

#include "cache/index/delta.h"
#include "cache/index/index_writer.h"
#include "test/support/index_fixture.h"

namespace {

using millrace::index::DeltaHeader;
using millrace::index::Index;
using millrace::index::kHeaderSize;
using millrace::test::Directory;
using millrace::test::Object;

const Index& Small() {
  static const std::shared_ptr<const Index> index = millrace::test::MakeIndex(
      {{"", {Directory("d"), Object("a"), Object("c")}}, {"d", {Object("b"), Object("e")}}});
  return *index;
}

std::string Sealed(absl::string_view body) {
  DeltaHeader header;
  header.from_version = header.to_version = Small().header().version;
  header.from_content = header.to_content = Small().header().content;
  header.seed = Small().header().seed;
  header.source_hash = Small().header().source_hash;
  header.body_bytes = body.size();
  header.body_hash = millrace::base::SeededHash64(body, 0);
  return EncodeDeltaHeader(header) + std::string(body);
}

// What it leads to must be what it says.
void Use(absl::string_view delta) {
  const auto applied = Apply(Small(), delta, millrace::index::NewUnnamedFile("").value());
  const auto header = millrace::index::DecodeDeltaHeader(delta);
  if (applied.ok() && (*applied)->header().content != header->to_content) __builtin_trap();
  const auto twice = millrace::index::Compose(delta, delta, 1 << 20);
  if (twice.ok()) (void)Apply(Small(), *twice, millrace::index::NewUnnamedFile("").value()).ok();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  Use(bytes);
  if (size >= kHeaderSize) Use(Sealed(bytes.substr(kHeaderSize)));
  return 0;
}
