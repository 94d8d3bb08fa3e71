// Runs a libFuzzer entry point without libFuzzer: every file of a seed corpus, then random
// mutations of them. Bounded in runs and in time; a crash leaves the input in fuzz-crash.bin.
//
//   fuzz_x CORPUS_DIRECTORY [RUNS [SEED]]      the seed is printed, so that a failure can be
//   repeated fuzz_x FILE                                runs one input
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kRunsDefault = 20'000;
constexpr std::chrono::seconds kTimeMax{30};
constexpr unsigned kOneRunSecondsMax = 10;
constexpr size_t kInputBytesMax = 64 * 1024;

// What is being run, for the handler of a crash.
const char* current_data = nullptr;
size_t current_size = 0;

void SaveInputAndDie(int signal_number) {
  const int fd = open("fuzz-crash.bin", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  [[maybe_unused]] ssize_t written = write(fd, current_data, current_size);
  constexpr char kMessage[] = "fuzz: crashed or hung; the input is in fuzz-crash.bin\n";
  written = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

void RunOne(const std::string& input) {
  // A copy of exactly the input's size: a sanitizer then sees a read behind its end.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  current_data = input.data();
  current_size = input.size();
  alarm(kOneRunSecondsMax);
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  alarm(0);
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class Mutator {
 public:
  Mutator(std::vector<std::string> seeds, uint64_t seed)
      : seeds_(std::move(seeds)), random_(seed) {}

  std::string Next() {
    std::string input = Seed();
    for (size_t changes = 1 + Below(6); changes > 0; --changes) Change(&input);
    input.resize(std::min(input.size(), kInputBytesMax));
    return input;
  }

 private:
  size_t Below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }
  const std::string& Seed() { return seeds_[Below(seeds_.size())]; }

  void Change(std::string* input) {
    const size_t at = Below(input->size() + 1);
    const size_t length = Below(std::min<size_t>(input->size() - at, 64) + 1);
    switch (Below(7)) {
      case 0:  // Flip a bit.
        if (at < input->size()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << Below(8)));
        break;
      case 1:  // Any byte.
        input->insert(at, 1, static_cast<char>(Below(256)));
        break;
      case 2:
        input->erase(at, length);
        break;
      case 3:  // Repeat a piece, now and then very often.
        for (size_t n = Below(20) == 0 ? 500 : 1 + Below(4);
             n > 0 && input->size() < kInputBytesMax; --n) {
          input->insert(at, input->substr(at, length));
        }
        break;
      case 4: {  // A piece of another seed.
        const std::string& other = Seed();
        const size_t from = Below(other.size());
        input->insert(at, other.substr(from, Below(64)));
        break;
      }
      case 5:
        input->resize(at);
        break;
      default: {  // What parsers trip over.
        static const std::string kTokens[] = {std::string(1, '\0'),
                                              "\xff\xfe",
                                              "%00",
                                              "%",
                                              "../",
                                              "18446744073709551616",
                                              "-1",
                                              "<![CDATA[",
                                              "&#0;",
                                              "\r\n",
                                              "=",
                                              "[",
                                              "://",
                                              "@"};
        input->insert(at, kTokens[Below(std::size(kTokens))]);
      }
    }
  }

  const std::vector<std::string> seeds_;
  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIRECTORY [RUNS [SEED]] | FILE\n", argv[0]);
    return 2;
  }
  for (const int crash : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM, SIGTRAP}) {
    signal(crash, SaveInputAndDie);
  }
  std::vector<std::string> seeds;
  if (std::filesystem::is_regular_file(argv[1])) {
    RunOne(ReadFile(argv[1]));
    return 0;
  }
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    seeds.push_back(ReadFile(entry.path()));
  }
  // The order of a directory is not the same everywhere; that of a repeated run must be.
  std::sort(seeds.begin(), seeds.end());
  if (seeds.empty()) {
    std::fprintf(stderr, "fuzz: no seeds in %s\n", argv[1]);
    return 2;
  }
  int runs = kRunsDefault;
  uint64_t seed = std::random_device{}();
  if ((argc > 2 && !absl::SimpleAtoi(argv[2], &runs)) ||
      (argc > 3 && !absl::SimpleAtoi(argv[3], &seed))) {
    std::fprintf(stderr, "fuzz: RUNS and SEED are numbers\n");
    return 2;
  }
  std::printf("fuzz: %zu seeds, %d mutations, seed %llu\n", seeds.size(), runs,
              static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  for (const std::string& input : seeds) RunOne(input);
  Mutator mutator(seeds, seed);
  const auto end = std::chrono::steady_clock::now() + kTimeMax;
  int done = 0;
  while (done < runs && std::chrono::steady_clock::now() < end) {
    const std::string input = mutator.Next();
    RunOne(input);
    ++done;
  }
  std::printf("fuzz: %d runs, no crash\n", done);
  return 0;
}
