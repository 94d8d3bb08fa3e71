// Unit tests of common/base/flags.
#include "common/base/flags.h"

#include "common/base/units.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::base {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

struct Settings {
  bool json = false;
  std::string name;
  uint64_t size = 0;
  absl::Duration refresh;
  int64_t count = 0;
  size_t colour = 99;
  std::vector<std::string> tiers;
};

FlagSet MakeFlags(Settings* settings) {
  FlagSet flags({.usage = "tool [OPTION...] FILE",
                 .summary = "Does one thing.",
                 .examples = {"tool --json a"},
                 .notes = "A note."});
  flags.Switch("json", &settings->json, "print JSON");
  flags.Text("name", "NAME", &settings->name, "what it is called");
  flags.Bytes("size", &settings->size, 64 * kMiB, "how large");
  flags.Duration("refresh", &settings->refresh, "how often");
  flags.Integer("count", &settings->count, 1, 10, "how many");
  flags.Choice(
      "colour", {"red", "green"}, [settings](size_t i) { settings->colour = i; }, "which colour");
  flags.Custom(
      "tier", "TIER",
      [settings](absl::string_view value) {
        settings->tiers.emplace_back(value);
        return absl::OkStatus();
      },
      "repeatable");
  flags.Integer("fd", &settings->count, 0, 10, "internal");
  flags.Hide();
  return flags;
}

absl::StatusOr<std::vector<std::string>> ParseAll(std::vector<std::string> arguments,
                                                  Settings* settings) {
  FlagSet flags = MakeFlags(settings);
  absl::StatusOr<ParsedArguments> parsed = flags.Parse(arguments);
  if (!parsed.ok()) return parsed.status();
  const absl::Status applied = flags.Apply(*parsed);
  if (!applied.ok()) return applied;
  return parsed->positionals;
}

std::string ErrorOf(std::vector<std::string> arguments) {
  Settings settings;
  const absl::Status status = ParseAll(std::move(arguments), &settings).status();
  EXPECT_EQ(ExitCode(status), 2) << status;
  return ErrorText(status);
}

TEST(FlagsTest, TakesBothWaysToGiveAValue) {
  Settings settings;
  const auto positionals = ParseAll({"a", "--name", "x", "--size=128Mi", "--refresh=5m", "--json",
                                     "--count", "3", "--colour=green", "b"},
                                    &settings);
  ASSERT_TRUE(positionals.ok()) << positionals.status();
  EXPECT_THAT(*positionals, ElementsAre("a", "b"));
  EXPECT_EQ(settings.name, "x");
  EXPECT_EQ(settings.size, 128 * kMiB);
  EXPECT_EQ(settings.refresh, absl::Minutes(5));
  EXPECT_TRUE(settings.json);
  EXPECT_EQ(settings.count, 3);
  EXPECT_EQ(settings.colour, 1u);
}

TEST(FlagsTest, RepeatsAndKeepsTheOrder) {
  Settings settings;
  ASSERT_TRUE(ParseAll({"--tier", "a", "--tier=b"}, &settings).ok());
  EXPECT_THAT(settings.tiers, ElementsAre("a", "b"));
}

TEST(FlagsTest, DoubleDashEndsTheOptions) {
  Settings settings;
  const auto positionals = ParseAll({"-", "--", "--json", "-x"}, &settings);
  ASSERT_TRUE(positionals.ok());
  EXPECT_THAT(*positionals, ElementsAre("-", "--json", "-x"));
  EXPECT_FALSE(settings.json);
}

TEST(FlagsTest, AnEmptyValueIsAValue) {
  Settings settings;
  settings.name = "before";
  ASSERT_TRUE(ParseAll({"--name="}, &settings).ok());
  EXPECT_EQ(settings.name, "");
}

TEST(FlagsTest, SuggestsTheNearestOption) {
  EXPECT_THAT(ErrorOf({"--teir", "x"}), HasSubstr("unknown option --teir; did you mean --tier?"));
  EXPECT_THAT(ErrorOf({"--zzzzzz"}), Not(HasSubstr("did you mean")));
  EXPECT_THAT(ErrorOf({"-j"}), HasSubstr("unknown option -j"));
  EXPECT_THAT(ErrorOf({"--" + std::string(100000, 'a')}), HasSubstr("unknown option"));
}

TEST(FlagsTest, NamesTheOptionWhoseValueIsWrong) {
  EXPECT_THAT(ErrorOf({"--name"}), HasSubstr("--name needs a value: --name NAME"));
  EXPECT_THAT(ErrorOf({"--size", "big"}), HasSubstr("--size: \"big\" is not a size"));
  EXPECT_THAT(ErrorOf({"--size", "1Mi"}), HasSubstr("the least is 64 MiB"));
  EXPECT_THAT(ErrorOf({"--count", "11"}), HasSubstr("--count: \"11\" is not a number from 1"));
  EXPECT_THAT(ErrorOf({"--colour", "blue"}), HasSubstr("not one of red, green"));
  EXPECT_THAT(ErrorOf({"--json=maybe"}), HasSubstr("neither true nor false"));
}

TEST(FlagsTest, HelpWinsOverEverythingElse) {
  Settings settings;
  FlagSet flags = MakeFlags(&settings);
  const auto parsed = flags.Parse({"--name", "x", "--help", "--unknown"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->help);
}

TEST(FlagsTest, HelpComesFromTheTable) {
  Settings settings;
  EXPECT_EQ(MakeFlags(&settings).Help(), R"(Usage: tool [OPTION...] FILE

Does one thing.

Options:
  --json                  print JSON
  --name NAME             what it is called
  --size SIZE             how large
  --refresh TIME          how often
  --count N               how many
  --colour red|green      which colour
  --tier TIER             repeatable
  --help                  print this text

A note.

Examples:
  tool --json a
)");
}

TEST(FlagsTest, MeasuresTheDistanceOfWords) {
  EXPECT_EQ(EditDistance("", "abc"), 3u);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3u);
  EXPECT_EQ(EditDistance("same", "same"), 0u);
  EXPECT_EQ(EditDistance("teir", "tier"), 1u);
  EXPECT_EQ(Nearest("umuont", {"mount", "umount"}), "umount");
}

TEST(FlagsTest, MapsStatusToExitCode) {
  EXPECT_EQ(ExitCode(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCode(absl::InvalidArgumentError("x")), 2);
  EXPECT_EQ(ExitCode(absl::UnavailableError("x")), 1);
}

}  // namespace
}  // namespace millrace::base
