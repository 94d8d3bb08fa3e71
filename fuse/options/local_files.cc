#include "fuse/options/local_files.h"

#include <iterator>
#include <utility>
#include <vector>

#include "cache/pool/resolver.h"

namespace millrace::options {

store::LocalFiles LocalFilesOf(const MountOptions& options, const store::Environment& environment) {
  store::LocalFiles all;
  for (const std::string& source : options.sources) {
    absl::StatusOr<store::LocalFiles> local = store::LocalFilesOf(source, environment);
    if (!local.ok()) continue;
    std::move(local->directories.begin(), local->directories.end(),
              std::back_inserter(all.directories));
    std::move(local->files.begin(), local->files.end(), std::back_inserter(all.files));
  }
  for (const std::string* file :
       {&options.worker_certificate, &options.worker_key, &options.worker_authority}) {
    if (!file->empty()) all.files.push_back(*file);
  }
  return all;
}

std::string WorkerSocketOf(const MountOptions& options) {
  const absl::StatusOr<std::vector<pool::WorkerSource>> workers =
      pool::ParseWorkers(options.workers);
  if (!workers.ok()) return "";
  for (const pool::WorkerSource& worker : *workers) {
    if (worker.address.is_unix()) return worker.address.path;
  }
  return "";
}

}  // namespace millrace::options
