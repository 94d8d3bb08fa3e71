#include "cli/bench/bench.h"

#include <cstdio>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "cli/bench/generators.h"
#include "common/base/flags.h"

namespace millrace::bench {
namespace {

struct Generator {
  absl::string_view name;
  absl::string_view summary;
  absl::Status (*run)(const std::vector<std::string>& arguments);
};

constexpr Generator kGenerators[] = {
    {"epoch", "open, read and close every file of a directory, as a training job does", RunEpoch},
    {"read", "read one or more large files, sequentially or at random", RunRead},
    {"stat", "stat every file of a directory", RunStat},
    {"list", "list one directory: time to the first entry, and to the last", RunList},
    {"make", "generate a training set: many small files and a big one", RunMake},
    {"soak", "read in every way at once, compare every byte, find errors and pauses", RunSoak},
    {"drop", "drop a directory's files from the page cache of its own file system", RunDrop},
};

std::string Usage() {
  std::string text =
      "Usage: millrace bench GENERATOR [OPTION...]\n\n"
      "Load generators for any directory, mounted or native.\n\n";
  for (const Generator& generator : kGenerators) {
    absl::StrAppend(&text, "  ", generator.name, std::string(8 - generator.name.size(), ' '),
                    generator.summary, "\n");
  }
  absl::StrAppend(&text, "\n`millrace bench GENERATOR --help` explains one of them.\n");
  return text;
}

}  // namespace

int BenchMain(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  if (arguments.empty()) {
    std::fputs(Usage().c_str(), stderr);
    return 2;
  }
  if (arguments[0] == "--help" || arguments[0] == "-h") {
    std::fputs(Usage().c_str(), stdout);
    return 0;
  }
  for (const Generator& generator : kGenerators) {
    if (generator.name != arguments[0]) continue;
    const absl::Status status =
        generator.run(std::vector<std::string>(arguments.begin() + 1, arguments.end()));
    if (!status.ok()) {
      std::fprintf(stderr, "millrace bench %s: %s\n", arguments[0].c_str(),
                   base::ErrorText(status).c_str());
    }
    return base::ExitCode(status);
  }
  std::fprintf(stderr, "millrace bench: no generator \"%s\"; `millrace bench --help` lists them\n",
               arguments[0].c_str());
  return 2;
}

}  // namespace millrace::bench
