#include "common/base/sandbox.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"

namespace millrace::base {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArchitecture = 0;
#endif

// Bit 30 marks the calls of the x32 ABI, which are the same as ours under other numbers.
constexpr uint32_t kX32Bit = 0x40000000;

// personality(2) with this only tells the present one.
constexpr uint32_t kAskPersonality = 0xffffffff;

// Numbers are those of the kernel's tables, which all architectures share from 424 on; headers of
// Debian 12 do not name the last ones.
constexpr uint32_t kMountSetattr = 442;
constexpr uint32_t kQuotactlFd = 443;
constexpr uint32_t kOpenTreeAttr = 467;

constexpr uint32_t kDenied[] = {
    // Other programs and other processes.
    SYS_execve,
    SYS_execveat,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_process_madvise,
    SYS_kcmp,
    SYS_pidfd_getfd,
    // Mounts, roots and namespaces.
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fspick,
    SYS_fsconfig,
    SYS_fsmount,
    kMountSetattr,
    kOpenTreeAttr,
    SYS_setns,
    SYS_unshare,
    // With CAP_DAC_READ_SEARCH, files beyond every mount and every container.
    SYS_open_by_handle_at,
    // Other users.
    SYS_setuid,
    SYS_setgid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setfsuid,
    SYS_setfsgid,
    SYS_setgroups,
    // The kernel's corners, where its bugs are found.
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_fanotify_init,
    SYS_lookup_dcookie,
    // The machine.
    SYS_kexec_load,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_reboot,
    SYS_swapon,
    SYS_swapoff,
    SYS_acct,
    SYS_quotactl,
    kQuotactlFd,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_clock_adjtime,
    SYS_adjtimex,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_syslog,
    SYS_vhangup,
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
#ifdef SYS_iopl
    SYS_iopl,
#endif
#ifdef SYS_ioperm
    SYS_ioperm,
#endif
#ifdef SYS_modify_ldt
    SYS_modify_ldt,
#endif
#ifdef SYS_uselib
    SYS_uselib,
#endif
};

// Every CLONE_NEW… but CLONE_NEWTIME, whose bit is part of the exit signal in clone(2).
constexpr uint32_t kNewNamespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                    CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;

constexpr sock_filter Statement(uint16_t code, uint32_t k) { return {code, 0, 0, k}; }
constexpr sock_filter Jump(uint16_t test, uint32_t k, uint8_t if_true, uint8_t if_false) {
  return {static_cast<uint16_t>(BPF_JMP | test | BPF_K), if_true, if_false, k};
}
constexpr sock_filter Load(size_t offset) {
  return Statement(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset));
}
constexpr sock_filter Return(uint32_t action) { return Statement(BPF_RET | BPF_K, action); }

std::vector<sock_filter> Filter() {
  const sock_filter deny = Return(SECCOMP_RET_ERRNO | EPERM);
  const sock_filter allow = Return(SECCOMP_RET_ALLOW);
  // The lower half: both architectures are little-endian.
  const sock_filter load_argument = Load(offsetof(seccomp_data, args));
  std::vector<sock_filter> program = {
      Load(offsetof(seccomp_data, arch)),
      Jump(BPF_JEQ, kArchitecture, 1, 0),
      deny,
      Load(offsetof(seccomp_data, nr)),
#ifdef __x86_64__
      Jump(BPF_JGE, kX32Bit, 0, 1),
      deny,
#endif
      // Its flags lie in memory, where a filter cannot look. The C library then takes clone.
      Jump(BPF_JEQ, SYS_clone3, 0, 1),
      Return(SECCOMP_RET_ERRNO | ENOSYS),
      Jump(BPF_JEQ, SYS_clone, 0, 4),
      load_argument,
      Jump(BPF_JSET, kNewNamespaces, 0, 1),
      deny,
      allow,
      Jump(BPF_JEQ, SYS_personality, 0, 4),
      load_argument,
      Jump(BPF_JEQ, kAskPersonality, 1, 0),
      deny,
      allow,
  };
  for (const uint32_t number : kDenied) {
    program.push_back(Jump(BPF_JEQ, number, 0, 1));
    program.push_back(deny);
  }
  program.push_back(allow);
  return program;
}

std::atomic<bool> installed{false};

absl::Status Install(const sock_fprog& program, unsigned flags) {
  const long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
  if (result == 0) return absl::OkStatus();
  if (result > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("thread ", result, " has a seccomp filter of its own"));
  }
  return ErrnoStatus(errno, "seccomp");
}

}  // namespace

absl::Status InstallSandbox() {
  if (kArchitecture == 0) {
    return absl::UnimplementedError("no seccomp filter is written for this processor");
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "no_new_privs");
  }
  std::vector<sock_filter> filter = Filter();
  const sock_fprog program = {static_cast<uint16_t>(filter.size()), filter.data()};
  // Before Linux 5.16 a filter also turns on a slow defence against a Spectre variant, meant for
  // processes that run code of others. This one does not.
  absl::Status status =
      Install(program, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW);
  if (ErrnoOf(status) == EINVAL) status = Install(program, SECCOMP_FILTER_FLAG_TSYNC);
  if (ErrnoOf(status) == ENOSYS || ErrnoOf(status) == EINVAL) {
    return absl::UnimplementedError("this kernel has no seccomp filters");
  }
  if (!status.ok()) return status;
  installed.store(true, std::memory_order_release);
  return absl::OkStatus();
}

void HideMemory() { prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }

bool SandboxInstalled() { return installed.load(std::memory_order_acquire); }

}  // namespace millrace::base
