// Signature V4 against AWS's published examples ("Signature Calculations for the Authorization
// Header" of the Amazon S3 API reference).
#include "common/http/sigv4.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::http {
namespace {

using ::testing::HasSubstr;

constexpr char kHost[] = "examplebucket.s3.amazonaws.com";

AwsSigV4 ExampleKey() {
  AwsSigV4 sign;
  sign.region = "us-east-1";
  sign.access_key_id = "AKIAIOSFODNN7EXAMPLE";
  sign.secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
  return sign;
}

absl::Time ExampleTime() {
  return absl::FromCivil(absl::CivilSecond(2013, 5, 24), absl::UTCTimeZone());
}

std::string AuthorizationOf(const std::vector<Header>& added) {
  for (const Header& header : added) {
    if (header.name == "Authorization") return header.value;
  }
  return "";
}

TEST(Sigv4Test, MatchesThePublishedGetObject) {
  Signer signer;
  EXPECT_EQ(AuthorizationOf(signer.Sign(ExampleKey(), kHost, "/test.txt", "",
                                        {{"Range", "bytes=0-9"}}, ExampleTime())),
            "AWS4-HMAC-SHA256 "
            "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
            "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
            "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST(Sigv4Test, MatchesThePublishedListing) {
  Signer signer;
  EXPECT_THAT(
      AuthorizationOf(
          signer.Sign(ExampleKey(), kHost, "/", "max-keys=2&prefix=J", {}, ExampleTime())),
      HasSubstr("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"));
}

TEST(Sigv4Test, ASignerServesSeveralKeysAndDays) {
  Signer used;
  AwsSigV4 other = ExampleKey();
  other.secret_access_key = "another";
  for (const absl::Duration later : {absl::ZeroDuration(), absl::Hours(24)}) {
    for (const AwsSigV4& key : {ExampleKey(), other}) {
      Signer fresh;
      const absl::Time now = ExampleTime() + later;
      EXPECT_EQ(AuthorizationOf(used.Sign(key, kHost, "/a", "", {}, now)),
                AuthorizationOf(fresh.Sign(key, kHost, "/a", "", {}, now)));
    }
  }
}

TEST(Sigv4Test, TheSessionTokenIsSentAndSigned) {
  AwsSigV4 sign = ExampleKey();
  sign.session_token = "token";
  Signer signer;
  const std::vector<Header> added =
      signer.Sign(sign, kHost, "/a", "", {{"If-Match", "\"v\""}}, ExampleTime());
  EXPECT_THAT(AuthorizationOf(added),
              HasSubstr("SignedHeaders=host;if-match;x-amz-content-sha256;x-amz-date;"
                        "x-amz-security-token,"));
  EXPECT_TRUE(std::any_of(added.begin(), added.end(), [](const Header& header) {
    return header.name == "x-amz-security-token" && header.value == "token";
  }));
}

}  // namespace
}  // namespace millrace::http
