#include "fuse/keeper/keeper.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace millrace::keeper {
namespace {

// Not the least there is: with that, a cgroup in which everybody has it kills nobody and hangs.
constexpr int kOomScore = -900;

}  // namespace

Keeper::Keeper() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A peer that hangs up is an error of that write.
  signal(SIGPIPE, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  signals_ = base::UniqueFd(signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
  signal_watch_ = loop_.Watch(signals_.get(), POLLIN, [this](short) { OnSignal(); });
}

absl::Status Keeper::Start(SessionOptions options, control::RunDirectory directory) {
  ASSIGN_OR_RETURN(std::unique_ptr<Session> session,
                   Session::Start(&loop_, this, std::move(options), std::move(directory)));
  sessions_.push_back(std::move(session));
  return absl::OkStatus();
}

absl::Status Keeper::Adopt(const std::string& mountpoint,
                           const Session::MakeOptions& make_options) {
  ASSIGN_OR_RETURN(std::unique_ptr<Session> session,
                   Session::Adopt(&loop_, this, mountpoint, make_options));
  sessions_.push_back(std::move(session));
  return absl::OkStatus();
}

int Keeper::Run() {
  if (!sessions_.empty()) loop_.Run();
  return exit_code_;
}

void Keeper::OnSessionEnded(Session* session, int exit_code) {
  if (exit_code != 0) exit_code_ = exit_code;
  ended_.push_back(session);
  // Its own functions are still on the stack.
  reaper_ = loop_.After(absl::ZeroDuration(), [this] {
    for (const Session* const each : ended_) {
      sessions_.erase(std::remove_if(sessions_.begin(), sessions_.end(),
                                     [each](const auto& one) { return one.get() == each; }),
                      sessions_.end());
    }
    ended_.clear();
    if (sessions_.empty()) loop_.Stop();
  });
}

void Keeper::OnSignal() {
  signalfd_siginfo info;
  if (read(signals_.get(), &info, sizeof(info)) != sizeof(info)) return;
  base::Log(base::Severity::kInfo, "ending", {{"signal", info.ssi_signo}});
  for (const auto& session : sessions_) session->End();
}

int ShunOomKiller() {
  constexpr char kFile[] = "/proc/self/oom_score_adj";
  int before = 0;
  std::ifstream(kFile) >> before;
  std::ofstream(kFile) << std::min(before, kOomScore);
  return before;
}

}  // namespace millrace::keeper
