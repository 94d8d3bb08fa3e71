#include "common/base/flags.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"

namespace millrace::base {
namespace {

constexpr size_t kHelpColumns = 80;  // A terminal's classic width: help must not wrap twice.
constexpr size_t kHelpIndent = 26;

// Breaks `text` at spaces into lines of at most `width`.
std::vector<std::string> Wrap(absl::string_view text, size_t width) {
  std::vector<std::string> lines;
  std::string line;
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (!line.empty() && line.size() + 1 + word.size() > width) {
      lines.push_back(std::exchange(line, ""));
    }
    absl::StrAppend(&line, line.empty() ? "" : " ", word);
  }
  if (!line.empty()) lines.push_back(line);
  return lines;
}

void AppendOption(absl::string_view left, absl::string_view help, std::string* out) {
  std::string line = absl::StrCat("  ", left);
  for (const std::string& text : Wrap(help, kHelpColumns - kHelpIndent)) {
    if (line.size() + 2 > kHelpIndent) {
      absl::StrAppend(out, line, "\n");
      line.clear();
    }
    line.resize(kHelpIndent, ' ');
    absl::StrAppend(out, line, text, "\n");
    line.clear();
  }
  if (!line.empty()) absl::StrAppend(out, line, "\n");
}

}  // namespace

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

std::string ErrorText(const absl::Status& status) {
  if (!status.message().empty()) return std::string(status.message());
  return absl::StatusCodeToString(status.code());
}

bool ParsedArguments::Has(absl::string_view name) const {
  return std::any_of(flags.begin(), flags.end(),
                     [name](const GivenFlag& flag) { return flag.name == name; });
}

FlagSet::FlagSet(HelpText help) : help_(std::move(help)) {}

void FlagSet::Custom(absl::string_view name, absl::string_view value_name, Setter set,
                     absl::string_view help) {
  flags_.push_back({std::string(name), std::string(value_name), std::string(help), std::move(set)});
}

void FlagSet::Hide() { flags_.back().hidden = true; }

void FlagSet::Switch(absl::string_view name, bool* target, absl::string_view help) {
  Custom(
      name, "",
      [target](absl::string_view value) {
        // Alone it means true; a file writes it out.
        if (value.empty()) {
          *target = true;
          return absl::OkStatus();
        }
        if (!absl::SimpleAtob(value, target)) {
          return absl::InvalidArgumentError(
              absl::StrCat("\"", value, "\" is neither true nor false"));
        }
        return absl::OkStatus();
      },
      help);
}

void FlagSet::Text(absl::string_view name, absl::string_view value_name, std::string* target,
                   absl::string_view help) {
  Custom(
      name, value_name,
      [target](absl::string_view value) {
        *target = std::string(value);
        return absl::OkStatus();
      },
      help);
}

void FlagSet::Bytes(absl::string_view name, uint64_t* target, uint64_t minimum,
                    absl::string_view help) {
  Custom(
      name, "SIZE",
      [target, minimum](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(value));
        if (bytes < minimum) {
          return absl::InvalidArgumentError(
              absl::StrCat(value, " is too small; the least is ", FormatBytes(minimum)));
        }
        *target = bytes;
        return absl::OkStatus();
      },
      help);
}

void FlagSet::Duration(absl::string_view name, absl::Duration* target, absl::string_view help) {
  Custom(
      name, "TIME",
      [target](absl::string_view value) -> absl::Status {
        ASSIGN_OR_RETURN(*target, ParseDuration(value));
        return absl::OkStatus();
      },
      help);
}

void FlagSet::Integer(absl::string_view name, int64_t* target, int64_t minimum, int64_t maximum,
                      absl::string_view help) {
  Custom(
      name, "N",
      [target, minimum, maximum](absl::string_view value) {
        int64_t number = 0;
        if (!absl::SimpleAtoi(value, &number) || number < minimum || number > maximum) {
          return absl::InvalidArgumentError(
              absl::StrCat("\"", value, "\" is not a number from ", minimum, " to ", maximum));
        }
        *target = number;
        return absl::OkStatus();
      },
      help);
}

void FlagSet::Choice(absl::string_view name, std::vector<std::string> choices,
                     std::function<void(size_t)> set, absl::string_view help) {
  const std::string value_name = absl::StrJoin(choices, "|");
  Custom(
      name, value_name,
      [choices = std::move(choices), set = std::move(set)](absl::string_view value) {
        const auto found = std::find(choices.begin(), choices.end(), value);
        if (found == choices.end()) {
          return absl::InvalidArgumentError(
              absl::StrCat("\"", value, "\" is not one of ", absl::StrJoin(choices, ", ")));
        }
        set(static_cast<size_t>(found - choices.begin()));
        return absl::OkStatus();
      },
      help);
}

const FlagSet::Flag* FlagSet::Find(absl::string_view name) const {
  for (const Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

absl::Status FlagSet::UnknownOption(absl::string_view argument, absl::string_view name) const {
  std::vector<std::string> names = {"help"};
  for (const Flag& flag : flags_) {
    if (!flag.hidden) names.push_back(flag.name);
  }
  const std::string nearest = Nearest(name, names);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown option ", argument,
                   nearest.empty() ? "" : absl::StrCat("; did you mean --", nearest, "?"),
                   nearest.empty() ? ";" : "", " --help lists all options"));
}

absl::StatusOr<ParsedArguments> FlagSet::Parse(absl::Span<const std::string> arguments) const {
  ParsedArguments parsed;
  bool options_ended = false;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (options_ended || argument == "-" || !absl::StartsWith(argument, "-")) {
      parsed.positionals.push_back(argument);
      continue;
    }
    if (argument == "--") {
      options_ended = true;
      continue;
    }
    if (argument == "--help" || argument == "-h") {
      parsed.help = true;
      return parsed;
    }
    if (!absl::StartsWith(argument, "--")) return UnknownOption(argument, argument.substr(1));
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Flag* const flag = Find(name);
    if (flag == nullptr) return UnknownOption(absl::StrCat("--", name), name);
    GivenFlag given{name, ""};
    if (equals != std::string::npos) {
      given.value = argument.substr(equals + 1);
    } else if (!flag->value_name.empty()) {
      if (i + 1 == arguments.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("--", name, " needs a value: --", name, " ", flag->value_name));
      }
      given.value = arguments[++i];
    }
    parsed.flags.push_back(std::move(given));
  }
  return parsed;
}

absl::Status FlagSet::Apply(const ParsedArguments& parsed) {
  for (const GivenFlag& given : parsed.flags) {
    RETURN_IF_ERROR(Set(given.name, given.value, absl::StrCat("--", given.name)));
  }
  return absl::OkStatus();
}

absl::Status FlagSet::Set(absl::string_view name, absl::string_view value,
                          absl::string_view origin) {
  const Flag* const flag = Find(name);
  if (flag == nullptr) return UnknownOption(origin, name);
  const absl::Status status = flag->set(value);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat(origin, ": ", status.message()));
}

std::string FlagSet::Help() const {
  std::string out;
  absl::string_view lead = "Usage: ";
  for (const absl::string_view line : absl::StrSplit(help_.usage, '\n')) {
    absl::StrAppend(&out, lead, line, "\n");
    lead = "       ";
  }
  absl::StrAppend(&out, "\n", absl::StrJoin(Wrap(help_.summary, kHelpColumns), "\n"), "\n");
  absl::StrAppend(&out, "\nOptions:\n");
  for (const Flag& flag : flags_) {
    if (flag.hidden) continue;
    AppendOption(absl::StrCat("--", flag.name, flag.value_name.empty() ? "" : " ", flag.value_name),
                 flag.help, &out);
  }
  AppendOption("--help", "print this text", &out);
  for (const absl::string_view paragraph : absl::StrSplit(help_.notes, "\n\n", absl::SkipEmpty())) {
    absl::StrAppend(&out, "\n", absl::StrJoin(Wrap(paragraph, kHelpColumns), "\n"), "\n");
  }
  if (!help_.examples.empty()) absl::StrAppend(&out, "\nExamples:\n");
  for (const std::string& example : help_.examples) absl::StrAppend(&out, "  ", example, "\n");
  return out;
}

size_t EditDistance(absl::string_view a, absl::string_view b) {
  // Rows of the table for the prefixes of `a` that end at i-2, i-1 and i.
  std::vector<size_t> before(b.size() + 1);
  std::vector<size_t> last(b.size() + 1);
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before.swap(last);
    last.swap(row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({substituted, last[j] + 1, row[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
  }
  return row[b.size()];
}

std::string Nearest(absl::string_view word, absl::Span<const std::string> candidates) {
  // A third of the letters may differ: "--teir" finds "--tier", "--x" finds nothing. Longer than
  // any option, a word is no misspelling, and the distance would cost its length squared.
  if (word.size() > 64) return "";
  std::string nearest;
  size_t least = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < least) {
      least = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace millrace::base
