#include "cache/store/uri.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "cache/store/registry.h"

namespace millrace::store {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string ErrorOf(absl::string_view text) {
  const absl::StatusOr<Uri> uri = ParseUri(text);
  EXPECT_EQ(uri.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(uri.status().message());
}

TEST(UriTest, TakesAUrlApart) {
  const absl::StatusOr<Uri> uri =
      ParseUri("train=S3://bucket/a/b%20c/?endpoint=http://h:9000&path-style=true");
  ASSERT_TRUE(uri.ok()) << uri.status();
  EXPECT_EQ(uri->name, "train");
  EXPECT_EQ(uri->scheme, "s3");
  EXPECT_EQ(uri->authority, "bucket");
  EXPECT_EQ(uri->path, "a/b c");
  EXPECT_EQ(uri->text, "S3://bucket/a/b%20c/");
  EXPECT_EQ(OptionOr(*uri, "endpoint", ""), "http://h:9000");
  EXPECT_TRUE(BoolOptionOr(*uri, "path-style", false).value());
}

TEST(UriTest, TakesShortFormsAndOddCharacters) {
  EXPECT_EQ(ParseUri("file:///")->path, "");
  EXPECT_EQ(ParseUri("file:///data/x")->path, "data/x");
  EXPECT_EQ(ParseUri("s3://b")->path, "");
  EXPECT_EQ(ParseUri("s3://b?region=x")->authority, "b");
  EXPECT_EQ(ParseUri("s3://b/a#1=2")->path, "a#1=2");
  EXPECT_EQ(ParseUri("s3://b/a%3Fb")->path, "a?b");
}

TEST(UriTest, RefusesWhatIsNoUrl) {
  EXPECT_THAT(ErrorOf("/data"), HasSubstr("s3://bucket/dir"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("not a URL"));
  EXPECT_THAT(ErrorOf("a/b=s3://x"), HasSubstr("NAME"));
  EXPECT_THAT(ErrorOf("..=s3://x"), HasSubstr("NAME"));
  EXPECT_THAT(ErrorOf("://x"), HasSubstr("scheme"));
  EXPECT_THAT(ErrorOf("s3://b/%zz"), HasSubstr("%25"));
  EXPECT_THAT(ErrorOf("s3://b/%00"), HasSubstr("%00"));
  EXPECT_THAT(ErrorOf("s3://b\n/x"), HasSubstr("character"));
  EXPECT_THAT(ErrorOf("s3://b?x=1&x=2"), HasSubstr("twice"));
  EXPECT_THAT(ErrorOf(std::string(5000, 'a')), HasSubstr("4096"));
}

TEST(UriTest, NeverRepeatsASecret) {
  const std::string error = ErrorOf("s3://AKIA123:topsecret@bucket/x");
  EXPECT_THAT(error, HasSubstr("AWS_ACCESS_KEY_ID"));
  EXPECT_THAT(error, Not(HasSubstr("topsecret")));
  EXPECT_THAT(error, Not(HasSubstr("AKIA123")));
  const absl::StatusOr<OpenedSource> opened = OpenSource("s3://b?secret-access-key=topsecret");
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("secrets are never"));
  EXPECT_THAT(opened.status().ToString(), Not(HasSubstr("topsecret")));
}

TEST(UriTest, SuggestsTheNearestOption) {
  const absl::StatusOr<OpenedSource> opened = OpenSource("s3://b?regoin=x");
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("did you mean \"region\"?"));
  EXPECT_EQ(Nearest("zzzzzz", {"region"}), "");
}

TEST(RegistryTest, AnUnknownSchemeListsTheKnown) {
  const absl::StatusOr<OpenedSource> opened = OpenSource("ftp://host/x");
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("file://, s3://, oss://, http://"));
}

TEST(RegistryTest, AFileUrlWithAHostNamesTheRightForm) {
  const absl::StatusOr<OpenedSource> opened = OpenSource("file://data/train");
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("file:///data/train"));
}

TEST(RegistryTest, AMissingDirectoryIsNamed) {
  const absl::StatusOr<OpenedSource> opened = OpenSource("file:///no/such/dir");
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("/no/such/dir"));
}

TEST(RegistryTest, TheIdentityHoldsTheEndpoint) {
  const absl::StatusOr<OpenedSource> opened =
      OpenSource("a=s3://b/p?anonymous=true&endpoint=http://h:1");
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->source.name, "a");
  EXPECT_EQ(opened->source.url, "s3://b/p");
  EXPECT_EQ(opened->source.identity, "s3://b/p?endpoint=http://h:1");
}

}  // namespace
}  // namespace millrace::store
