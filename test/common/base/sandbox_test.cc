// Each test installs the sandbox in a child of its own: it is irrevocable.
#include "common/base/sandbox.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/types/span.h"
#include "common/base/file_text.h"
#include "common/io/file_io.h"
#include "gtest/gtest.h"

namespace millrace::base {
namespace {

// Runs `body` in a child; it returns true when all is as it should be.
void InChild(const std::function<bool()>& body) {
  std::fflush(nullptr);
  const pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) _exit(body() ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0) << "what the child says stands above";
}

bool Installed() {
  if (const absl::Status status = InstallSandbox(); !status.ok()) {
    std::fprintf(stderr, "not installed: %s\n", status.ToString().c_str());
    return false;
  }
  return SandboxInstalled();
}

// True when the call failed with `error`.
bool Fails(const char* what, long result, int error = EPERM) {
  if (result == -1 && errno == error) return true;
  std::fprintf(stderr, "%s: %ld, %s\n", what, result, std::strerror(errno));
  return false;
}
bool Works(const char* what, long result) {
  if (result >= 0) return true;
  std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
  return false;
}

TEST(Sandbox, IsOffUntilInstalled) { EXPECT_FALSE(SandboxInstalled()); }

TEST(Sandbox, StartsNoProgram) {
  InChild([] {
    if (!Installed()) return false;
    char name[] = "/bin/true";
    char* const argv[] = {name, nullptr};
    return Fails("execve", execv(name, argv)) &&
           Fails("execveat", syscall(SYS_execveat, AT_FDCWD, name, argv, nullptr, 0));
  });
}

TEST(Sandbox, RefusesWhatADaemonNeverNeeds) {
  InChild([] {
    if (!Installed()) return false;
    return Fails("mount", mount("none", "/", "tmpfs", 0, nullptr)) &&
           Fails("umount", umount2("/nowhere", 0)) && Fails("chroot", chroot("/")) &&
           Fails("unshare", unshare(CLONE_NEWUSER)) && Fails("setns", setns(0, 0)) &&
           Fails("ptrace", ptrace(PTRACE_TRACEME, 0, nullptr, nullptr)) &&
           Fails("bpf", syscall(SYS_bpf, 0, nullptr, 0)) &&
           Fails("userfaultfd", syscall(SYS_userfaultfd, 0)) &&
           Fails("keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0)) &&
           Fails("open_by_handle_at", syscall(SYS_open_by_handle_at, 0, nullptr, 0)) &&
           Fails("fsopen", syscall(SYS_fsopen, "tmpfs", 0)) &&
           Fails("mount_setattr", syscall(442, AT_FDCWD, "/", 0, nullptr, 0)) &&
           Fails("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), 0, 0, 0, 0, 0)) &&
           // Even to what it is already: calls of other users' ids are not looked at.
           Fails("setresuid", syscall(SYS_setresuid, -1, -1, -1)) &&
           Fails("setgroups", syscall(SYS_setgroups, 0, nullptr)) &&
           Fails("personality", syscall(SYS_personality, ADDR_NO_RANDOMIZE)) &&
           Fails("clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)) &&
           Fails("clone3", syscall(SYS_clone3, nullptr, 0), ENOSYS) &&
           Works("personality", syscall(SYS_personality, 0xffffffff));
  });
}

#ifdef __x86_64__
TEST(Sandbox, RefusesTheX32Calls) {
  InChild([] { return Installed() && Fails("x32 getpid", syscall(0x40000000 | SYS_getpid)); });
}

#endif

TEST(Sandbox, LetsFilesAndSocketsWork) {
  InChild([] {
    if (!Installed()) return false;
    char path[] = "/tmp/millrace-sandbox-test.XXXXXX";
    const int file = mkstemp(path);
    int pair[2];
    char byte = 0;
    const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
    return Works("mkstemp", file) && Works("write", write(file, "x", 1)) &&
           Works("pread", pread(file, &byte, 1, 0)) && byte == 'x' &&
           Works("unlink", unlink(path)) && Works("socket", socket_fd) &&
           Works("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair)) &&
           Works("send", send(pair[0], "y", 1, 0)) && Works("recv", recv(pair[1], &byte, 1, 0)) &&
           byte == 'y';
  });
}

TEST(Sandbox, LetsThreadsAndRingsWork) {
  InChild([] {
    if (!Installed()) return false;
    const absl::StatusOr<std::unique_ptr<io::FileIo>> uring = io::NewUringFileIo(8);
    if (!uring.ok()) {
      std::fprintf(stderr, "skipped: no io_uring: %s\n", uring.status().ToString().c_str());
      return true;
    }
    const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    std::mutex mutex;
    std::condition_variable done;
    bool read = false;
    bool ok = false;
    char bytes[4] = {};
    (*uring)->Read(file, 0, absl::MakeSpan(bytes), [&](absl::StatusOr<size_t> size) {
      std::lock_guard<std::mutex> lock(mutex);
      ok = size.ok() && *size == sizeof(bytes);
      read = true;
      done.notify_all();
    });
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, [&] { return read; });
    return ok && std::memcmp(bytes, "\177ELF", 4) == 0;
  });
}

// Threads that run before it is installed are no way around it.
TEST(Sandbox, HoldsForAllThreads) {
  InChild([] {
    std::mutex mutex;
    std::condition_variable changed;
    bool go = false;
    bool refused = false;
    std::thread early([&] {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [&] { return go; });
      refused = Fails("unshare of an early thread", unshare(CLONE_NEWUSER));
    });
    const bool installed = Installed();
    {
      std::lock_guard<std::mutex> lock(mutex);
      go = true;
    }
    changed.notify_all();
    early.join();
    return installed && refused;
  });
}

TEST(Sandbox, ShowsInStatus) {
  InChild([] {
    if (!Installed()) return false;
    const std::string status = base::ReadTextFile("/proc/self/status", 1 << 16).value_or("");
    return status.find("NoNewPrivs:\t1") != std::string::npos &&
           status.find("Seccomp:\t2") != std::string::npos;
  });
}

TEST(HideMemory, KeepsOthersOfTheUserOut) {
  InChild([] {
    if (!Works("open of /proc/self/mem", open("/proc/self/mem", O_RDONLY))) return false;
    HideMemory();
    struct stat found;
    // Root's from now on, whoever this is.
    return Works("stat", stat("/proc/self/mem", &found)) && found.st_uid == 0 &&
           prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0;
  });
}

}  // namespace
}  // namespace millrace::base
