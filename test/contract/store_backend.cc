#include "test/contract/store_backend.h"

#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/store/file_store.h"
#include "cache/store/http_store.h"
#include "cache/store/memory_store.h"
#include "cache/store/s3_store.h"
#include "cache/store/uri.h"
#include "common/base/hash.h"
#include "test/support/child_process.h"
#include "test/support/socket.h"

namespace millrace::test {
namespace {

constexpr absl::Duration kServerStart = absl::Seconds(20);

class MemoryBackend : public StoreBackend {
 public:
  void Put(const std::string& path, const std::string& bytes) override { store_.Put(path, bytes); }
  void Remove(const std::string& path) override { store_.Remove(path); }
  store::Store& store() override { return store_; }

 private:
  store::MemoryStore store_;
};

// A directory, served in one way or another.
class DirectoryBackend : public StoreBackend {
 public:
  // `prefix` is where in the temporary directory the objects lie.
  explicit DirectoryBackend(const std::string& prefix) : root_(dir_.path() + prefix) {
    std::filesystem::create_directories(root_);
  }
  void Put(const std::string& path, const std::string& bytes) override {
    // A new file each time: servers must not see half a change.
    const std::string scratch = dir_.path() + "/scratch";
    WriteFile(scratch, bytes);
    if (seal_) {
      const std::string etag = absl::StrCat("\"", base::StableHashHex({bytes}), "\"");
      setxattr(scratch.c_str(), "user.etag", etag.data(), etag.size(), 0);
    }
    std::filesystem::create_directories(std::filesystem::path(root_ + "/" + path).parent_path());
    std::filesystem::rename(scratch, root_ + "/" + path);
  }
  void Remove(const std::string& path) override { std::filesystem::remove(root_ + "/" + path); }
  store::Store& store() override { return *store_; }

  const std::string& top() const { return dir_.path(); }
  const std::string& root() const { return root_; }
  void set_store(std::shared_ptr<store::Store> store) { store_ = std::move(store); }
  void set_seal() { seal_ = true; }
  void Start(const std::vector<std::string>& command,
             const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    server_.emplace(command, environment, dir_.path() + "/server.log");
  }

 private:
  TempDir dir_;
  const std::string root_;
  bool seal_ = false;  // Objects get the ETag attribute that versitygw keeps.
  std::shared_ptr<store::Store> store_;
  std::optional<ChildProcess> server_;
};

std::unique_ptr<StoreBackend> MakeMemory(std::string*) { return std::make_unique<MemoryBackend>(); }

std::unique_ptr<StoreBackend> MakeFile(std::string* skip_reason) {
  auto backend = std::make_unique<DirectoryBackend>("/root");
  auto store = store::NewFileStore(backend->root());
  if (!store.ok()) {
    *skip_reason = store.status().ToString();
    return nullptr;
  }
  backend->set_store(*store);
  return backend;
}

std::string NginxProgram() {
  for (const char* const path : {MILLRACE_NGINX, "/usr/sbin/nginx"}) {
    if (access(path, X_OK) == 0) return path;
  }
  return "";
}

std::unique_ptr<StoreBackend> FinishHttp(std::unique_ptr<DirectoryBackend> backend, uint16_t port,
                                         std::string* skip_reason) {
  const auto uri = store::ParseUri(absl::StrCat("http://127.0.0.1:", port, "/root/"));
  const auto store = store::NewHttpStore(*uri);
  if (!WaitForPort(port, kServerStart) || !store.ok()) {
    *skip_reason = "the web server did not start";
    return nullptr;
  }
  backend->set_store(*store);
  return backend;
}

std::unique_ptr<StoreBackend> MakeNginx(std::string* skip_reason) {
  const std::string program = NginxProgram();
  if (program.empty()) {
    *skip_reason = "nginx is not installed";
    return nullptr;
  }
  auto backend = std::make_unique<DirectoryBackend>("/www/root");
  const std::string& top = backend->top();
  const uint16_t port = FreePort();
  const std::string user = geteuid() == 0 ? "user root;" : "";
  std::string temp_paths;
  for (const char* const kind : {"client_body", "proxy", "fastcgi", "uwsgi", "scgi"}) {
    absl::StrAppend(&temp_paths, kind, "_temp_path ", top, "/", kind, "; ");
  }
  WriteFile(
      top + "/nginx.conf",
      absl::StrCat(user, " daemon off; master_process off; pid ", top, "/pid; error_log ", top,
                   "/error.log; events { worker_connections 256; } http { access_log off; ",
                   temp_paths, " server { listen 127.0.0.1:", port, "; root ", top,
                   "/www; autoindex on; } }"));
  backend->Start({program, "-p", top, "-c", top + "/nginx.conf"});
  return FinishHttp(std::move(backend), port, skip_reason);
}

std::unique_ptr<StoreBackend> MakePython(std::string* skip_reason) {
  auto backend = std::make_unique<DirectoryBackend>("/www/root");
  const uint16_t port = FreePort();
  backend->Start({"python3", "-m", "http.server", absl::StrCat(port), "--bind", "127.0.0.1",
                  "--directory", backend->top() + "/www"});
  return FinishHttp(std::move(backend), port, skip_reason);
}

std::unique_ptr<StoreBackend> MakeS3(std::string* skip_reason) {
  if (access(MILLRACE_VERSITYGW, X_OK) != 0) {
    *skip_reason = "versitygw is not installed: run ./dev deps";
    return nullptr;
  }
  auto backend = std::make_unique<DirectoryBackend>("/gateway/bucket/root");
  backend->set_seal();
  const uint16_t port = FreePort();
  backend->Start({MILLRACE_VERSITYGW, "--port", absl::StrCat("127.0.0.1:", port), "--keep-alive",
                  "--quiet", "posix", backend->top() + "/gateway"},
                 {{"ROOT_ACCESS_KEY", "contract"}, {"ROOT_SECRET_KEY", "contract-secret"}});
  const auto environment = [](const std::string& name) -> std::optional<std::string> {
    if (name == "AWS_ACCESS_KEY_ID") return "contract";
    if (name == "AWS_SECRET_ACCESS_KEY") return "contract-secret";
    return std::nullopt;
  };
  const auto uri =
      store::ParseUri(absl::StrCat("s3://bucket/root?endpoint=http://127.0.0.1:", port));
  auto options = store::S3OptionsFromUri(*uri, environment);
  if (!WaitForPort(port, kServerStart) || !options.ok()) {
    *skip_reason = "versitygw did not start";
    return nullptr;
  }
  backend->set_store(store::NewS3Store(*std::move(options)));
  return backend;
}

}  // namespace

std::vector<BackendKind> AllBackends() {
  return {{"Memory", &MakeMemory},
          {"File", &MakeFile},
          {"HttpNginx", &MakeNginx},
          {"HttpPython", &MakePython},
          {"S3", &MakeS3}};
}

}  // namespace millrace::test
