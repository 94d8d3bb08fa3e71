#include "cache/tier/no_cache.h"

namespace millrace::tier {
namespace {

class NoCache final : public TieredCache {
 public:
  std::shared_ptr<CachedFile> FindOrAdmit(const FileKey&) override { return nullptr; }
  std::shared_ptr<CachedFile> Find(const FileKey&) override { return nullptr; }
  uint64_t RoomBytes() const override { return 0; }
  uint64_t Evict(absl::string_view, absl::string_view) override { return 0; }
  std::vector<TierStats> Stats() const override { return {}; }
  absl::Status Close() override { return absl::OkStatus(); }
  absl::Status HandOver() override { return absl::OkStatus(); }
};

}  // namespace

std::unique_ptr<TieredCache> NewNoCache() { return std::make_unique<NoCache>(); }

}  // namespace millrace::tier
