// The file of --config: the runtime.json that a cache runtime's containers find in a cluster. One
// file is for all of them; each takes what is for all, and the part with its component's name.
//
//   {
//     "mounts": [{"mountPoint": "s3://bucket/dir", "name": "train", "path": "/train",
//                 "options": {"region": "eu-1"},
//                 "encryptOptions": {"access-key": "/etc/fluid/secrets/s/key"}}],
//     "targetPath": "/runtime-mnt/cache/ns/name/cache-fuse",
//     "accessModes": ["ReadOnlyMany"],
//     "worker": {"enabled": true, "service": {"name": "svc-name-worker"}},
//     "client": {
//       "options": {"memory-limit": "1Gi", "metrics": ":7462"},
//       "tieredStoreLevels": [{"mountPaths": ["/dev/shm"], "mediumType": "MEM",
//                              "quotas": ["2Gi"], "high": "0.95", "low": "0.7"}]},
//     "worker": {"options": {…}, "tieredStoreLevels": […]}
//   }
//
// Fields that are not known are ignored (other engines have theirs); a known field of a wrong type
// is InvalidArgument and named by its path, as in client.tieredStoreLevels[0].quotas[1].
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cache/tier/tiered_cache.h"

namespace millrace::config {

struct RuntimeConfig {
  // NAME=URL?options. A mount whose path is "/" has no name: it is the root. Secrets stay in
  // their files: an encrypted option KEY becomes the option KEY-file.
  std::vector<std::string> sources;
  std::string target_path;
  bool read_write = false;  // An access mode asks for it.
  std::vector<tier::TierOptions> tiers;
  // The service of the workers, where they are enabled and have one: as --workers takes it.
  std::vector<std::string> workers;
  // Of the component, values as text, in the order of their names.
  std::vector<std::pair<std::string, std::string>> options;
};

// `component` is "client" or "worker"; tiers and options are those of that part.
absl::StatusOr<RuntimeConfig> ParseRuntimeConfig(absl::string_view json,
                                                 const std::string& component);

}  // namespace millrace::config
