#include "cache/store/sample.h"

#include <deque>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace millrace::store {

absl::StatusOr<std::vector<Entry>> SampleDirectories(Store& store, size_t max_objects,
                                                     size_t directories_max,
                                                     const CallOptions& call) {
  std::vector<Entry> sample;
  std::deque<std::string> directories = {""};
  for (size_t seen = 0; seen < directories_max && !directories.empty(); ++seen) {
    const std::string path = std::move(directories.front());
    directories.pop_front();
    absl::StatusOr<ListPage> page = store.List(path, "", max_objects, call);
    if (!page.ok() && path.empty()) return page.status();
    if (!page.ok()) continue;
    for (Entry& entry : page->entries) {
      if (!path.empty()) entry.name = absl::StrCat(path, "/", entry.name);
      if (entry.kind == EntryKind::kDirectory) {
        if (directories.size() < directories_max) directories.push_back(entry.name);
      } else if (sample.size() < max_objects) {
        sample.push_back(std::move(entry));
      }
    }
    if (sample.size() >= max_objects) break;
  }
  return sample;
}

}  // namespace millrace::store
