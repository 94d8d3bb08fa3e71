// S3 without a server: options, credentials, URLs, XML; and answers that no server gives on demand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cache/store/local_files.h"
#include "cache/store/s3_store.h"
#include "cache/store/s3_xml.h"
#include "test/support/child_process.h"
#include "test/support/scripted_http_server.h"

namespace millrace::store {
namespace {

using test::HttpHead;
using test::ScriptedHttpServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

Environment Fake(std::map<std::string, std::string> values) {
  return [values = std::move(values)](const std::string& name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return std::nullopt;
    return found->second;
  };
}

Environment WithKeys() {
  return Fake({{"AWS_ACCESS_KEY_ID", "AKID"},
               {"AWS_SECRET_ACCESS_KEY", "s3cr3t-key"},
               {"AWS_SESSION_TOKEN", "t0ken-value"}});
}

absl::StatusOr<S3Options> Options(const std::string& text, const Environment& environment) {
  return S3OptionsFromUri(*ParseUri(text), environment);
}

TEST(S3OptionsTest, DefaultsAreAmazons) {
  const auto options = Options("s3://bucket/dir", WithKeys());
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->endpoint, "https://s3.us-east-1.amazonaws.com");
  EXPECT_FALSE(options->path_style);
  EXPECT_EQ(S3Url(*options, "dir/a", ""), "https://bucket.s3.us-east-1.amazonaws.com/dir/a");
  const auto dotted = Options("s3://my.bucket?region=eu-west-1", WithKeys());
  EXPECT_EQ(S3Url(*dotted, "", "x=1"), "https://s3.eu-west-1.amazonaws.com/my.bucket?x=1");
}

TEST(S3OptionsTest, OssIsADialect) {
  const auto options = Options("oss://bucket/x?region=cn-hangzhou",
                               Fake({{"OSS_ACCESS_KEY_ID", "i"}, {"OSS_ACCESS_KEY_SECRET", "k"}}));
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(S3Url(*options, "x", ""), "https://bucket.oss-cn-hangzhou.aliyuncs.com/x");
  EXPECT_EQ(options->credentials->access_key_id, "i");
  EXPECT_THAT(std::string(Options("oss://bucket", WithKeys()).status().message()),
              HasSubstr("region=cn-hangzhou"));
}

TEST(S3OptionsTest, RefusesBadValues) {
  for (const char* const text :
       {"s3:///dir", "s3://bucket?endpoint=http://a:b@h", "s3://bucket?endpoint=http://h/path",
        "s3://bucket?region=a%0Ab", "s3://bucket?path-style=maybe", "s3://b$cket"}) {
    EXPECT_EQ(Options(text, WithKeys()).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(S3OptionsTest, MissingCredentialsSayWhatToSet) {
  const auto options = Options("s3://bucket", Fake({}));
  EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* const remedy : {"AWS_ACCESS_KEY_ID", "access-key-file", "anonymous=true"}) {
    EXPECT_THAT(std::string(options.status().message()), HasSubstr(remedy));
  }
  EXPECT_TRUE(Options("s3://bucket?anonymous=true", Fake({})).ok());
}

TEST(CredentialsTest, ReadsProfilesAndPairs) {
  const char kFile[] =
      "[default]\naws_access_key_id = A\naws_secret_access_key=B\n"
      "# other\n[profile gpu]\naws_access_key_id=C\naws_secret_access_key=D\naws_session_token=E\n";
  EXPECT_EQ(ParseCredentials(kFile, "default")->secret_access_key, "B");
  EXPECT_EQ(ParseCredentials(kFile, "gpu")->session_token, "E");
  EXPECT_EQ(ParseCredentials(kFile, "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ParseCredentials("ID:SECRET\n", "default")->secret_access_key, "SECRET");
  const absl::Status bad =
      ParseCredentials("aws_access_key_id=x\naws_secret_access_key=sec ret\n", "default").status();
  EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bad.message()), Not(HasSubstr("sec ret")));
}

TEST(CredentialsTest, TheKeyFileComesFirst) {
  const test::TempDir dir;
  const std::string path = dir.path() + "/keys";
  test::WriteFile(path, "FILEID:FILESECRET");
  const auto options = Options("s3://bucket?access-key-file=" + path, WithKeys());
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->credentials->access_key_id, "FILEID");
  const auto missing = Options("s3://bucket?access-key-file=" + path + "x", WithKeys());
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(path + "x"));
}

// What the starter of a daemon must know is what the daemon then reads.
TEST(LocalFilesTest, AreThoseThatOpeningReads) {
  const auto files = [](const char* source, const Environment& environment) {
    const absl::StatusOr<LocalFiles> local = LocalFilesOf(source, environment);
    EXPECT_TRUE(local.ok()) << local.status();
    return local.ok() ? local->files : std::vector<std::string>();
  };
  const Environment home = Fake({{"HOME", "/home/me"}});
  EXPECT_THAT(files("s3://bucket", WithKeys()), IsEmpty());
  EXPECT_THAT(files("s3://bucket?anonymous=true", home), IsEmpty());
  EXPECT_THAT(files("s3://bucket", home), ElementsAre("/home/me/.aws/credentials"));
  EXPECT_THAT(files("train=oss://bucket", Fake({{"AWS_SHARED_CREDENTIALS_FILE", "/keys"}})),
              ElementsAre("/keys"));
  EXPECT_THAT(files("s3://bucket?access-key-file=/run/key&ca-file=/ca.pem", WithKeys()),
              ElementsAre("/run/key", "/ca.pem"));
  EXPECT_THAT(files("s3://bucket", Fake({{"AWS_CA_BUNDLE", "/bundle"}})), ElementsAre("/bundle"));
  EXPECT_THAT(files("https://host/dir/?ca-file=/ca.pem", home), ElementsAre("/ca.pem"));
  EXPECT_THAT(files("file:///srv/a%20b", home), IsEmpty());
  EXPECT_THAT(LocalFilesOf("x=file:///srv/a%20b/", home)->directories, ElementsAre("/srv/a b"));
  EXPECT_FALSE(LocalFilesOf("no url", home).ok());
}

// A profile that was asked for is read from the file, whatever keys the environment has.
TEST(LocalFilesTest, AProfileComesBeforeTheEnvironment) {
  const Environment environment = Fake({{"HOME", "/home/me"},
                                        {"AWS_ACCESS_KEY_ID", "AKID"},
                                        {"AWS_SECRET_ACCESS_KEY", "s3cr3t-key"}});
  EXPECT_THAT(LocalFilesOf("s3://bucket?profile=p", environment)->files,
              ElementsAre("/home/me/.aws/credentials"));
}

TEST(S3UrlTest, KeysAreEncodedOnceAndDotsKept) {
  const auto options = Options("s3://bucket?endpoint=http://h:1", WithKeys());
  EXPECT_EQ(S3Url(*options, "a b/../c+%=~é", ""), "http://h:1/bucket/a%20b/../c%2B%25%3D~%C3%A9");
}

constexpr char kListing[] = R"(<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>
<NextContinuationToken>tok/en==</NextContinuationToken>
<Contents><Key>d/a+b%2Bc%0A</Key><LastModified>2009-10-12T17:50:30.250Z</LastModified>
<ETag>&quot;fba9dede5f27731c9771645a39863328&quot;</ETag><Size>434234</Size></Contents>
<Contents><Key>d/huge</Key><Size>9223372036854775807</Size></Contents>
<Contents><Key>d/impossible</Key><Size>9223372036854775808</Size></Contents>
<Contents><Key>d/beyond</Key><Size>99999999999999999999</Size></Contents>
<Contents><Key>d/negative</Key><Size>-1</Size></Contents>
<CommonPrefixes><Prefix>d/sub/</Prefix></CommonPrefixes>
<CommonPrefixes><Prefix>d//</Prefix></CommonPrefixes></ListBucketResult>)";

TEST(S3XmlTest, ReadsAListing) {
  const absl::StatusOr<S3Listing> listing = ParseS3Listing(kListing);
  ASSERT_TRUE(listing.ok()) << listing.status();
  ASSERT_EQ(listing->objects.size(), 4u);
  EXPECT_EQ(listing->objects[0].key, "d/a b+c\n");
  EXPECT_EQ(listing->objects[0].size, 434234u);
  EXPECT_EQ(listing->objects[0].etag, "fba9dede5f27731c9771645a39863328");
  EXPECT_EQ(absl::ToUnixMillis(listing->objects[0].mtime), 1255369830250);
  EXPECT_EQ(listing->objects[1].size, 9223372036854775807u);
  EXPECT_EQ(listing->objects[2].size, 9223372036854775808u);
  EXPECT_EQ(listing->objects[3].size, std::numeric_limits<uint64_t>::max());
  EXPECT_THAT(listing->prefixes, ElementsAre("d/sub/", "d//"));
  EXPECT_EQ(listing->next_token, "tok/en==");
}

TEST(S3XmlTest, RefusesWhatIsNoListing) {
  for (const char* const xml :
       {"", "<html>", "<ListBucketResult>", "<Error><Code>x</Code></Error>",
        "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<!DOCTYPE a [<!ENTITY b \"c\">]><ListBucketResult></ListBucketResult>"}) {
    EXPECT_EQ(ParseS3Listing(xml).status().code(), absl::StatusCode::kInvalidArgument) << xml;
  }
  std::string deep;
  for (int i = 0; i < 1000; ++i) deep += "<a>";
  EXPECT_FALSE(ParseS3Listing(deep).ok());
}

TEST(S3XmlTest, ReadsAnError) {
  const S3Error error = ParseS3Error(
      "<Error><Code>NoSuchBucket</Code><Message>gone</Message><Region>x</Region></Error>");
  EXPECT_EQ(error.code, "NoSuchBucket");
  EXPECT_EQ(error.message, "gone");
  EXPECT_EQ(error.region, "x");
  EXPECT_EQ(ParseS3Error("Bad gateway").code, "");
}

// One scripted answer to every request.
absl::Status ListError(int status, const std::vector<std::string>& headers, const std::string& body,
                       const std::string& option = "") {
  ScriptedHttpServer server(
      [&](const HttpHead&) { return ScriptedHttpServer::Answer(status, headers, body); });
  const auto options =
      Options(absl::StrCat("s3://bucket?endpoint=", server.url(), option), WithKeys());
  return NewS3Store(*options)->List("", "", 10, CallOptions()).status();
}

TEST(S3ErrorTest, TheRightRegionIsNamed) {
  const absl::Status status = ListError(301, {"x-amz-bucket-region: eu-west-1"}, "");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("?region=eu-west-1"));
  EXPECT_THAT(std::string(ListError(400, {},
                                    "<Error><Code>AuthorizationHeaderMalformed</Code>"
                                    "<Region>ap-south-1</Region></Error>")
                              .message()),
              HasSubstr("?region=ap-south-1"));
}

TEST(S3ErrorTest, CodesMapAndCarryRetryAfter) {
  const absl::Status slow =
      ListError(503, {"Retry-After: 7"}, "<Error><Code>SlowDown</Code></Error>");
  EXPECT_EQ(slow.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(slow.GetPayload(kRetryAfterPayload), absl::Cord("7"));
  EXPECT_EQ(ListError(429, {}, "").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ListError(500, {}, "").code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ListError(400, {}, "<Error><Code>RequestTimeout</Code></Error>").code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(ListError(403, {}, "<Error><Code>AccessDenied</Code></Error>").code(),
            absl::StatusCode::kPermissionDenied);
  const absl::Status gone = ListError(404, {}, "<Error><Code>NoSuchBucket</Code></Error>");
  EXPECT_EQ(gone.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(gone.message()), HasSubstr("no bucket bucket"));
  EXPECT_EQ(ListError(200, {}, "not xml").code(), absl::StatusCode::kInvalidArgument);
}

TEST(S3ErrorTest, ASecretThatTheStoreRepeatsIsCutOut) {
  const absl::Status status = ListError(
      403, {},
      "<Error><Code>X</Code><Message>you sent s3cr3t-key and t0ken-value</Message></Error>");
  EXPECT_THAT(status.ToString(), Not(HasSubstr("s3cr3t-key")));
  EXPECT_THAT(status.ToString(), Not(HasSubstr("t0ken-value")));
}

TEST(S3StoreTest, SignsSortedQueriesAndTheSessionToken) {
  ScriptedHttpServer server([](const HttpHead&) {
    return ScriptedHttpServer::Answer(200, {}, "<ListBucketResult></ListBucketResult>");
  });
  const auto options = Options(absl::StrCat("s3://bucket/p?endpoint=", server.url()), WithKeys());
  ASSERT_TRUE(NewS3Store(*options)->List("a b", "to/k=", 10, CallOptions()).ok());
  const HttpHead request = server.requests().at(0);
  EXPECT_EQ(request.target(),
            "/bucket?continuation-token=to%2Fk%3D&delimiter=%2F&encoding-type=url&list-type=2&"
            "max-keys=10&prefix=p%2Fa%20b%2F");
  EXPECT_EQ(request.header("x-amz-security-token"), "t0ken-value");
  EXPECT_THAT(request.header("authorization"),
              HasSubstr("SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token"));
  EXPECT_THAT(request.header("authorization"), HasSubstr("Credential=AKID/"));
  EXPECT_THAT(request.text, Not(HasSubstr("s3cr3t-key")));
}

TEST(S3StoreTest, AnonymousRequestsAreNotSigned) {
  ScriptedHttpServer server([](const HttpHead&) {
    return ScriptedHttpServer::Answer(200, {}, "<ListBucketResult></ListBucketResult>");
  });
  const auto options =
      Options(absl::StrCat("s3://bucket?anonymous=true&endpoint=", server.url()), WithKeys());
  ASSERT_TRUE(NewS3Store(*options)->List("", "", 10, CallOptions()).ok());
  EXPECT_EQ(server.requests().at(0).header("authorization"), "");
}

TEST(S3StoreTest, HostileListingsBecomeNamesAsTheyAre) {
  ScriptedHttpServer server([](const HttpHead&) {
    return ScriptedHttpServer::Answer(
        200, {},
        "<ListBucketResult><EncodingType>url</EncodingType>"
        "<Contents><Key>d/</Key><Size>0</Size></Contents>"
        "<Contents><Key>d/..</Key><Size>1</Size></Contents>"
        "<Contents><Key>elsewhere</Key><Size>1</Size></Contents>"
        "<Contents><Key>d/a%00b</Key><Size>1</Size></Contents>"
        "<CommonPrefixes><Prefix>d//</Prefix></CommonPrefixes>"
        "<CommonPrefixes><Prefix>d/../</Prefix></CommonPrefixes></ListBucketResult>");
  });
  const auto options = Options(absl::StrCat("s3://bucket?endpoint=", server.url()), WithKeys());
  const auto page = NewS3Store(*options)->List("d", "", 10, CallOptions());
  ASSERT_TRUE(page.ok()) << page.status();
  std::vector<std::string> names;
  for (const Entry& entry : page->entries) names.push_back(entry.name);
  EXPECT_THAT(names, ElementsAre("", "..", "..", std::string("a\0b", 3)));
}

TEST(S3StoreTest, AnswersThatDoNotFitTheRangeAreRefused) {
  const std::vector<std::vector<std::string>> answers = {
      {"206", "Content-Range: bytes 0-9/100"},    // Another beginning.
      {"206", "Content-Range: bytes 10-18/100"},  // Shorter.
      {"206", "Content-Range: bytes 10-20/100"},  // Longer.
      {"206", "X: no Content-Range"},
      {"200", "ETag: \"v\""},  // Not a range at all.
  };
  for (const std::vector<std::string>& answer : answers) {
    ScriptedHttpServer server([&](const HttpHead&) {
      return ScriptedHttpServer::Answer(answer[0] == "206" ? 206 : 200, {answer[1]}, "0123456789");
    });
    const auto options = Options(absl::StrCat("s3://bucket?endpoint=", server.url()), WithKeys());
    GetRequest request;
    request.path = "a";
    request.offset = 10;
    request.length = 10;
    int pieces = 0;
    const absl::Status status = NewS3Store(*options)->Get(
        request,
        [&pieces](absl::string_view) {
          ++pieces;
          return true;
        },
        CallOptions());
    EXPECT_FALSE(status.ok()) << answer[1];
    EXPECT_FALSE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(pieces, 0) << answer[1];
  }
}

}  // namespace
}  // namespace millrace::store
