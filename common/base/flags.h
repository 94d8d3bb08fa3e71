// Command-line options from a table: GNU long options, --help generated from the same table.
//
//   FlagSet flags({.usage = "millrace warm MOUNTPOINT [PATH...]", .summary = "Loads data."});
//   flags.Switch("json", &json, "print JSON");
//   ASSIGN_OR_RETURN(ParsedArguments parsed, flags.Parse(arguments));
//   if (parsed.help) …print flags.Help()…
//   RETURN_IF_ERROR(flags.Apply(parsed));
//
// Parsing and applying are two steps, so that a program can put another origin of the same
// settings (a configuration file) in between: it applies that first, and the command line wins.
//
// Every error is InvalidArgument: wrong usage, exit 2 (ExitCode). One FlagSet belongs to one
// thread; the targets must outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace millrace::base {

// 0 for OK, 2 for wrong usage (InvalidArgument), 1 for everything else.
int ExitCode(const absl::Status& status);

// "what; why; remedy" of a status for a person: the message alone, without the code's name.
std::string ErrorText(const absl::Status& status);

struct GivenFlag {
  std::string name;   // Without dashes.
  std::string value;  // Empty for a switch that stands alone.
};

struct ParsedArguments {
  std::vector<GivenFlag> flags;  // In the order given; every name is known.
  std::vector<std::string> positionals;
  bool help = false;  // --help or -h: whatever else was given does not matter.

  bool Has(absl::string_view name) const;
};

struct HelpText {
  std::string usage;    // "millrace warm MOUNTPOINT [PATH...]"; several lines are possible.
  std::string summary;  // One paragraph; wrapped by Help().
  std::vector<std::string> examples;
  std::string notes;  // After the options, wrapped; paragraphs separated by an empty line.
};

class FlagSet {
 public:
  // Takes the value, keeps it somewhere, or says what is wrong with it. The caller adds the name
  // of the option to the message.
  using Setter = std::function<absl::Status(absl::string_view value)>;

  explicit FlagSet(HelpText help);

  // Declarations, in the order of --help. `help` is a sentence without a full stop.
  void Switch(absl::string_view name, bool* target, absl::string_view help);
  void Text(absl::string_view name, absl::string_view value_name, std::string* target,
            absl::string_view help);
  void Bytes(absl::string_view name, uint64_t* target, uint64_t minimum, absl::string_view help);
  void Duration(absl::string_view name, absl::Duration* target, absl::string_view help);
  void Integer(absl::string_view name, int64_t* target, int64_t minimum, int64_t maximum,
               absl::string_view help);
  // One of `choices`; the index goes to `set`.
  void Choice(absl::string_view name, std::vector<std::string> choices,
              std::function<void(size_t index)> set, absl::string_view help);
  void Custom(absl::string_view name, absl::string_view value_name, Setter set,
              absl::string_view help);
  // The flag declared last does not appear in --help: it is part of a protocol between programs.
  void Hide();

  // Splits arguments (without the program's name). "--" ends the options; "-" is positional. An
  // unknown option is an error that names the nearest known one.
  absl::StatusOr<ParsedArguments> Parse(absl::Span<const std::string> arguments) const;

  // Sets what was given, in order.
  absl::Status Apply(const ParsedArguments& parsed);
  // Sets one option. `origin` names it in errors: "--tier", or "client.options.tier" of a file.
  absl::Status Set(absl::string_view name, absl::string_view value, absl::string_view origin);

  bool Known(absl::string_view name) const { return Find(name) != nullptr; }

  std::string Help() const;

 private:
  struct Flag {
    std::string name;
    std::string value_name;  // Empty for a switch.
    std::string help;
    Setter set;
    bool hidden = false;
  };

  const Flag* Find(absl::string_view name) const;
  absl::Status UnknownOption(absl::string_view argument, absl::string_view name) const;

  const HelpText help_;
  std::vector<Flag> flags_;
};

// The number of insertions, deletions, substitutions and swapped neighbours between two words.
size_t EditDistance(absl::string_view a, absl::string_view b);

// The one of `candidates` a person most likely meant by `word`; empty when none is near.
std::string Nearest(absl::string_view word, absl::Span<const std::string> candidates);

}  // namespace millrace::base
