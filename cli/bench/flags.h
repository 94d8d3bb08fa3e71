// GNU long options for the load generators: "--name VALUE", "--name=VALUE", "--switch", "--".
//
//   uint64_t threads = 1;
//   Flags flags;
//   flags.Number("threads", &threads, {.min = 1, .max = 1024});
//   ASSIGN_OR_RETURN(auto positional, flags.Parse(arguments));
//
// Not thread-safe. The targets must outlive Parse.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace millrace::bench {

class Flags {
 public:
  struct Range {
    uint64_t min = 0;
    uint64_t max = UINT64_MAX;
  };

  void Text(absl::string_view name, std::string* target);
  void Number(absl::string_view name, uint64_t* target, Range range);
  // A size like 128Ki.
  void Bytes(absl::string_view name, uint64_t* target, Range range);
  // A duration like 10ms.
  void Time(absl::string_view name, absl::Duration* target);
  // One of a few words.
  void Choice(absl::string_view name, std::string* target, std::vector<std::string> words);
  // Takes no value; present means true.
  void Switch(absl::string_view name, bool* target);

  // Sets the targets and returns the arguments that are no option. InvalidArgument names the option
  // that is unknown, lacks its value or has a wrong one.
  absl::StatusOr<std::vector<std::string>> Parse(const std::vector<std::string>& arguments) const;

 private:
  struct Option {
    bool takes_value = true;
    // Says what is wrong with the value, without the option's name.
    std::function<absl::Status(const std::string& value)> set;
  };

  std::map<std::string, Option, std::less<>> options_;
};

}  // namespace millrace::bench
