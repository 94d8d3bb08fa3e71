#include "cache/store/s3_options.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"

namespace millrace::store {
namespace {

bool IsLabelCharacter(char c) {
  return absl::ascii_islower(static_cast<unsigned char>(c)) ||
         absl::ascii_isdigit(static_cast<unsigned char>(c)) || c == '-';
}

// Bucket names that can stand before ".endpoint" under its TLS certificate: no dots, no capitals.
bool IsHostLabel(absl::string_view bucket) {
  return bucket.size() <= 63 && std::all_of(bucket.begin(), bucket.end(), IsLabelCharacter);
}

absl::Status CheckBucket(const Uri& uri) {
  const auto valid = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '_';
  };
  const std::string& bucket = uri.authority;
  if (!bucket.empty() && bucket != "." && bucket != ".." &&
      std::all_of(bucket.begin(), bucket.end(), valid)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      uri.text, ": no bucket name; write it like ", uri.scheme, "://bucket/dir",
      absl::StrContains(bucket, ':') ? " (a server's address goes into the option endpoint)" : ""));
}

absl::Status CheckRegion(const std::string& region) {
  if (!region.empty() && region.size() <= 64 &&
      std::all_of(region.begin(), region.end(), IsLabelCharacter)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "the region is not a name like eu-west-1: check the option region and AWS_REGION");
}

// "host:port", "http://host:port/" to "scheme://host:port".
absl::StatusOr<std::string> NormalEndpoint(absl::string_view text) {
  std::string scheme = "https";
  if (absl::ConsumePrefix(&text, "http://")) {
    scheme = "http";
  } else {
    absl::ConsumePrefix(&text, "https://");
  }
  absl::ConsumeSuffix(&text, "/");
  const auto valid = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view(".-_:[]").find(c) != absl::string_view::npos;
  };
  if (text.empty() || text.size() > 255 || !std::all_of(text.begin(), text.end(), valid)) {
    return absl::InvalidArgumentError(
        "the endpoint is not of the form http://host:port or https://host (no user name, no path)");
  }
  return absl::StrCat(scheme, "://", text);
}

std::string FirstOf(const Environment& environment, std::initializer_list<const char*> names) {
  for (const char* const name : names) {
    const std::optional<std::string> value = environment(name);
    if (value.has_value() && !value->empty()) return *value;
  }
  return "";
}

absl::Status FindEndpoint(const Uri& uri, const Environment& environment, S3Options* options) {
  const bool oss = uri.scheme == "oss";
  std::string endpoint(OptionOr(uri, "endpoint", ""));
  if (endpoint.empty() && !oss) {
    endpoint = FirstOf(environment, {"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"});
  }
  options->endpoint_is_default = endpoint.empty();
  if (endpoint.empty()) {
    if (!oss) {
      // The one partition whose names end otherwise.
      const char* const suffix = absl::StartsWith(options->region, "cn-") ? ".cn" : "";
      endpoint = absl::StrCat("s3.", options->region, ".amazonaws.com", suffix);
    } else if (!options->region.empty()) {
      endpoint = absl::StrCat("oss-", options->region, ".aliyuncs.com");
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          uri.text,
          ": an oss:// source needs the option endpoint or region, as in ?region=cn-hangzhou"));
    }
  }
  ASSIGN_OR_RETURN(options->endpoint, NormalEndpoint(endpoint));
  return absl::OkStatus();
}

}  // namespace

CredentialsQuery S3CredentialsQuery(const Uri& uri) {
  CredentialsQuery query;
  query.key_file = std::string(OptionOr(uri, "access-key-file", ""));
  query.profile = std::string(OptionOr(uri, "profile", ""));
  if (uri.scheme == "oss") query.environment_prefix = "OSS_";
  return query;
}

std::string S3CaFile(const Uri& uri, const Environment& environment) {
  const absl::string_view file = OptionOr(uri, "ca-file", "");
  return file.empty() ? FirstOf(environment, {"AWS_CA_BUNDLE"}) : std::string(file);
}

absl::StatusOr<S3Options> S3OptionsFromUri(const Uri& uri, const Environment& environment) {
  RETURN_IF_ERROR(CheckOptions(uri, {"endpoint", "region", "path-style", "anonymous",
                                     "access-key-file", "profile", "ca-file"}));
  RETURN_IF_ERROR(CheckBucket(uri));
  S3Options options;
  options.kind = uri.scheme;
  options.url = uri.text;
  options.bucket = uri.authority;
  options.prefix = uri.path;
  options.region = std::string(OptionOr(uri, "region", ""));
  if (uri.scheme == "oss") {
    // Both spellings are in use: "cn-hangzhou" and "oss-cn-hangzhou".
    options.region = std::string(absl::StripPrefix(options.region, "oss-"));
  } else if (options.region.empty()) {
    options.region = FirstOf(environment, {"AWS_REGION", "AWS_DEFAULT_REGION"});
    if (options.region.empty()) options.region = "us-east-1";
  }
  RETURN_IF_ERROR(FindEndpoint(uri, environment, &options));
  // OSS takes any region in a signature; its own name for it is customary.
  if (options.region.empty()) options.region = "us-east-1";
  RETURN_IF_ERROR(CheckRegion(options.region));

  const bool vendors = absl::EndsWith(options.endpoint, ".amazonaws.com") ||
                       absl::EndsWith(options.endpoint, ".amazonaws.com.cn") ||
                       absl::EndsWith(options.endpoint, ".aliyuncs.com");
  ASSIGN_OR_RETURN(options.path_style,
                   BoolOptionOr(uri, "path-style", !vendors || !IsHostLabel(options.bucket)));
  options.ca_file = S3CaFile(uri, environment);

  ASSIGN_OR_RETURN(const bool anonymous, BoolOptionOr(uri, "anonymous", false));
  if (!anonymous) {
    absl::StatusOr<Credentials> credentials = FindCredentials(S3CredentialsQuery(uri), environment);
    if (!credentials.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(uri.text, ": ", credentials.status().message()));
    }
    options.credentials = *std::move(credentials);
  }
  return options;
}

}  // namespace millrace::store
