// Signature V4 against AWS's published example, and what it must do beyond it.
#include "bench/store_limit/sigv4.h"

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::bench {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// "Example: GET Object" of the Amazon S3 API reference, Signature Calculations for the
// Authorization Header.
SigningKey ExampleKey() {
  return SigningKey{.access_key = "AKIAIOSFODNN7EXAMPLE",
                    .secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                    .region = "us-east-1"};
}

GetToSign ExampleGet() {
  return {.host = "examplebucket.s3.amazonaws.com",
          .path = "/test.txt",
          .query = "",
          .range = "bytes=0-9"};
}

absl::Time ExampleTime() {
  return absl::FromCivil(absl::CivilSecond(2013, 5, 24), absl::UTCTimeZone());
}

TEST(Sigv4Test, MatchesThePublishedGetObject) {
  EXPECT_EQ(Signer(ExampleKey()).Authorization(ExampleGet(), ExampleTime()),
            "AWS4-HMAC-SHA256 "
            "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST(Sigv4Test, MatchesThePublishedListing) {
  // "Example: Get Bucket (List Objects)" of the same page.
  GetToSign get = ExampleGet();
  get.path = "/";
  get.query = "max-keys=2&prefix=J";
  get.range = "";
  EXPECT_THAT(
      Signer(ExampleKey()).Authorization(get, ExampleTime()),
      HasSubstr("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
}

TEST(Sigv4Test, TheKeyFollowsTheDay) {
  Signer signer(ExampleKey());
  const std::string first = signer.Authorization(ExampleGet(), ExampleTime());
  const std::string next_day = signer.Authorization(ExampleGet(), ExampleTime() + absl::Hours(24));
  EXPECT_THAT(next_day, HasSubstr("/20130525/us-east-1/"));
  EXPECT_EQ(next_day,
            Signer(ExampleKey()).Authorization(ExampleGet(), ExampleTime() + absl::Hours(24)));
  EXPECT_EQ(first, signer.Authorization(ExampleGet(), ExampleTime()));
}

TEST(Sigv4Test, HeadIsARequest) {
  GetToSign get = ExampleGet();
  EXPECT_THAT(Signer(ExampleKey()).SignedHead(get, ExampleTime()),
              AllOf(StartsWith("GET /test.txt HTTP/1.1\r\n"), HasSubstr("\r\nRange: bytes=0-9\r\n"),
                    HasSubstr("\r\n\r\n")));
  get.range = "";
  EXPECT_THAT(Signer(ExampleKey()).SignedHead(get, ExampleTime()), Not(HasSubstr("Range")));
}

TEST(Sigv4Test, PathsAreEncoded) {
  EXPECT_EQ(EncodePath("/b/a b+c/~é.bin"), "/b/a%20b%2Bc/~%C3%A9.bin");
}

}  // namespace
}  // namespace millrace::bench
