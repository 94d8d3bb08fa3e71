// The worlds that the contract of store::Store is tested in: each can put and remove objects in
// what a store then reads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache/store/store.h"

namespace millrace::test {

class StoreBackend {
 public:
  virtual ~StoreBackend() = default;
  virtual void Put(const std::string& path, const std::string& bytes) = 0;
  virtual void Remove(const std::string& path) = 0;
  virtual store::Store& store() = 0;
};

struct BackendKind {
  const char* name;
  // A fresh, empty world; null with `skip_reason` where this machine lacks what it needs.
  std::unique_ptr<StoreBackend> (*make)(std::string* skip_reason);
};

// memory, file, http by nginx, http by Python (no ranges), s3 by versitygw.
std::vector<BackendKind> AllBackends();

}  // namespace millrace::test
