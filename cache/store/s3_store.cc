#include "cache/store/s3_store.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "cache/store/http_answer.h"
#include "cache/store/s3_xml.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/http/client.h"
#include "common/http/fields.h"

namespace millrace::store {
namespace {

// A thousand keys of 1024 bytes, each byte encoded as three, with their attributes.
constexpr size_t kListingBytesMax = 8 * base::kMiB;
constexpr size_t kKeysPerPageMax = 1000;  // S3's own limit.

absl::string_view LastComponent(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

Entry DirectoryEntry(absl::string_view name) {
  Entry entry;
  entry.name = std::string(name);
  entry.kind = EntryKind::kDirectory;
  return entry;
}

Entry ObjectEntry(absl::string_view name, const S3Listing::Object& object) {
  Entry entry;
  entry.name = std::string(name);
  entry.size = object.size;
  entry.mtime = object.mtime;
  // Listings have milliseconds, the other answers only seconds: the version has seconds, or it
  // would differ between them.
  entry.version =
      !object.etag.empty()
          ? object.etag
          : absl::StrCat(absl::ToUnixSeconds(object.mtime) * 1'000'000'000, "-", object.size);
  return entry;
}

class S3Store : public Store {
 public:
  explicit S3Store(S3Options options);

  absl::string_view kind() const override { return options_.kind; }
  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override;
  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override;
  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override;
  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override;

 private:
  std::string KeyOf(absl::string_view path) const;
  // What every key of the directory `path` begins with.
  std::string KeyPrefixOf(absl::string_view path) const;
  http::Request NewRequest(const std::string& key, absl::string_view query,
                           const CallOptions& call) const;
  // "s3: get s3://bucket/key", the beginning of every message.
  std::string What(absl::string_view operation, absl::string_view path) const;

  absl::StatusOr<S3Listing> FetchListing(const std::string& prefix, bool delimited,
                                         const std::string& token, size_t max_keys,
                                         const CallOptions& call);
  absl::StatusOr<Entry> StatDirectory(const std::string& path, const CallOptions& call);

  // The error that an answer with a status other than 2xx means.
  absl::Status AnswerError(const http::Response& response) const;
  std::string Explain(const http::Response& response, const S3Error& error) const;
  // Text of the store without anything secret that it might repeat.
  std::string Redacted(absl::string_view text) const;

  const S3Options options_;
  http::AwsSigV4 sign_;
  http::Client client_;
};

S3Store::S3Store(S3Options options)
    : options_(std::move(options)), client_({.ca_file = options_.ca_file}) {
  if (options_.credentials.has_value()) {
    sign_.region = options_.region;
    sign_.access_key_id = options_.credentials->access_key_id;
    sign_.secret_access_key = options_.credentials->secret_access_key;
    sign_.session_token = options_.credentials->session_token;
  }
}

std::string S3Store::KeyOf(absl::string_view path) const {
  return options_.prefix.empty() ? std::string(path) : absl::StrCat(options_.prefix, "/", path);
}

std::string S3Store::KeyPrefixOf(absl::string_view path) const {
  if (path.empty()) return options_.prefix.empty() ? "" : absl::StrCat(options_.prefix, "/");
  return absl::StrCat(KeyOf(path), "/");
}

std::string S3Store::What(absl::string_view operation, absl::string_view path) const {
  return absl::StrCat(options_.kind, ": ", operation, " ", Printable(options_.url),
                      path.empty() || absl::EndsWith(options_.url, "/") ? "" : "/",
                      Printable(path));
}

http::Request S3Store::NewRequest(const std::string& key, absl::string_view query,
                                  const CallOptions& call) const {
  http::Request request;
  request.url = S3Url(options_, key, query);
  if (options_.credentials.has_value()) request.sign = &sign_;
  request.timeout = call.timeout;
  request.stall_timeout = call.stall_timeout;
  request.cancelled = call.cancelled;
  return request;
}

absl::StatusOr<S3Listing> S3Store::FetchListing(const std::string& prefix, bool delimited,
                                                const std::string& token, size_t max_keys,
                                                const CallOptions& call) {
  // In the order of the names, as the signature demands.
  const std::string query = absl::StrCat(
      token.empty() ? "" : absl::StrCat("continuation-token=", http::PercentEncode(token), "&"),
      delimited ? "delimiter=%2F&" : "",
      "encoding-type=url&list-type=2&max-keys=", std::clamp<size_t>(max_keys, 1, kKeysPerPageMax),
      "&prefix=", http::PercentEncode(prefix));
  http::Request request = NewRequest("", query, call);
  request.body_bytes_max = kListingBytesMax;
  ASSIGN_OR_RETURN(const http::Response response, client_.Fetch(request));
  if (response.status != 200) return AnswerError(response);
  return ParseS3Listing(response.body);
}

absl::StatusOr<ListPage> S3Store::List(const std::string& path, const std::string& token,
                                       size_t max_entries, const CallOptions& call) {
  const std::string prefix = KeyPrefixOf(path);
  absl::StatusOr<S3Listing> listing = FetchListing(prefix, true, token, max_entries, call);
  if (!listing.ok()) return Prefixed(What("list", path), listing.status());
  ListPage page;
  page.entries.reserve(listing->objects.size() + listing->prefixes.size());
  for (const std::string& common : listing->prefixes) {
    absl::string_view name = common;
    // Servers that answer about other keys than asked are not believed.
    if (!absl::ConsumePrefix(&name, prefix) || !absl::ConsumeSuffix(&name, "/")) continue;
    page.entries.push_back(DirectoryEntry(name));
  }
  for (const S3Listing::Object& object : listing->objects) {
    absl::string_view name = object.key;
    if (!absl::ConsumePrefix(&name, prefix)) continue;
    if (name.empty() && object.size == 0) continue;  // The directory's own marker.
    page.entries.push_back(ObjectEntry(name, object));
  }
  page.next_token = std::move(listing->next_token);
  return page;
}

absl::StatusOr<Entry> S3Store::Stat(const std::string& path, const CallOptions& call) {
  if (path.empty()) return StatDirectory(path, call);
  http::Request request = NewRequest(KeyOf(path), "", call);
  request.method = http::Method::kHead;
  const absl::StatusOr<http::Response> response = client_.Fetch(request);
  if (!response.ok()) return Prefixed(What("stat", path), response.status());
  if (response->status == 404) return StatDirectory(path, call);
  if (response->status != 200) return Prefixed(What("stat", path), AnswerError(*response));
  const std::optional<uint64_t> size = response->ContentLength();
  if (!size.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat(What("stat", path), ": the store does not tell the object's size"));
  }
  Entry entry;
  entry.name = std::string(LastComponent(path));
  entry.size = *size;
  entry.mtime =
      http::ParseHttpDate(response->Find("last-modified").value_or("")).value_or(absl::UnixEpoch());
  entry.version = VersionOf(*response, *size);
  return entry;
}

absl::StatusOr<Entry> S3Store::StatDirectory(const std::string& path, const CallOptions& call) {
  const absl::StatusOr<S3Listing> listing = FetchListing(KeyPrefixOf(path), false, "", 1, call);
  if (!listing.ok()) return Prefixed(What("stat", path), listing.status());
  if (!path.empty() && listing->objects.empty()) {
    return absl::NotFoundError(absl::StrCat(What("stat", path), ": no such object"));
  }
  return DirectoryEntry(LastComponent(path));
}

absl::Status S3Store::Get(const GetRequest& get, BodySink sink, const CallOptions& call) {
  http::Request request = NewRequest(KeyOf(get.path), "", call);
  request.body_bytes_hint = get.length;
  AddRangeHeaders(get, &request.headers);
  BodyWindow window;
  WindowSink body(&window, get.length, sink);
  // S3 answers every range; a whole object with 200 is right only for the whole object.
  const auto check = [&](const http::Response& head) {
    absl::Status status = CheckGetAnswer(head, get, 0, &window);
    if (status.ok() && head.status == 200 && head.ContentLength() != get.length) {
      status = absl::InvalidArgumentError("the store did not answer the range asked for");
    }
    return status;
  };
  const absl::StatusOr<http::Response> response =
      client_.Stream(request, check, [&body](absl::string_view piece) { return body(piece); });
  if (!response.ok()) return Prefixed(What("get", get.path), response.status());
  if (response->status < 200 || response->status > 299) {
    return Prefixed(What("get", get.path), AnswerError(*response));
  }
  if (!body.complete()) {
    return absl::UnavailableError(absl::StrCat(
        What("get", get.path), ": short body: ", body.passed(), " of ", get.length, " bytes"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Entry>> S3Store::Sample(size_t max_objects, const CallOptions& call) {
  const std::string prefix = KeyPrefixOf("");
  const absl::StatusOr<S3Listing> listing = FetchListing(prefix, false, "", max_objects, call);
  if (!listing.ok()) return Prefixed(What("sample", ""), listing.status());
  std::vector<Entry> sample;
  for (const S3Listing::Object& object : listing->objects) {
    absl::string_view name = object.key;
    if (!absl::ConsumePrefix(&name, prefix) || absl::EndsWith(name, "/") || name.empty()) continue;
    if (sample.size() < max_objects) sample.push_back(ObjectEntry(name, object));
  }
  return sample;
}

absl::Status S3Store::AnswerError(const http::Response& response) const {
  const S3Error error = ParseS3Error(response.body);
  absl::Status status = HttpStatusError(response, Explain(response, error));
  // Codes that mean something else than their status.
  absl::StatusCode code = status.code();
  if (error.code == "RequestTimeout" || error.code == "SlowDown" ||
      error.code == "OperationAborted" || error.code == "Throttling") {
    code = absl::StatusCode::kUnavailable;
  } else if (error.code == "ExpiredToken" || error.code == "InvalidToken" ||
             error.code == "InvalidAccessKeyId" || error.code == "XAdminUserNotFound") {
    code = absl::StatusCode::kPermissionDenied;
  }
  if (code == status.code()) return status;
  return absl::Status(code, status.message());
}

std::string S3Store::Explain(const http::Response& response, const S3Error& error) const {
  const std::string region =
      Redacted(!error.region.empty() ? absl::string_view(error.region)
                                     : response.Find("x-amz-bucket-region").value_or(""));
  const bool redirected = response.status == 301 || response.status == 307;
  if (!region.empty() && region != options_.region && (redirected || response.status == 400)) {
    return absl::StrCat("the bucket ", options_.bucket, " is in the region ", region, ", not ",
                        options_.region, "; add ?region=", region);
  }
  std::string text =
      absl::StrCat(response.status, error.code.empty() ? "" : " ", Redacted(error.code),
                   error.message.empty() ? "" : ": ", Redacted(error.message));
  const auto remedy = [&text](absl::string_view what) { absl::StrAppend(&text, "; ", what); };
  if (redirected) {
    remedy(error.endpoint.empty()
               ? "the bucket is elsewhere; give its region or endpoint as an option"
               : absl::StrCat("the bucket is at ", Redacted(error.endpoint),
                              "; give it as the option endpoint"));
  } else if (error.code == "NoSuchBucket") {
    remedy(absl::StrCat("no bucket ", options_.bucket, " at ", options_.endpoint,
                        "; check its name, the region and the endpoint"));
  } else if (error.code == "InvalidAccessKeyId" || error.code == "SignatureDoesNotMatch" ||
             error.code == "XAdminUserNotFound") {  // The last is versitygw's, with a 404.
    remedy("check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the profile");
  } else if (error.code == "ExpiredToken" || error.code == "InvalidToken") {
    remedy("get a new AWS_SESSION_TOKEN");
  } else if (error.code == "RequestTimeTooSkewed") {
    remedy("set this machine's clock");
  } else if (error.code == "InvalidObjectState") {
    remedy("the object is archived; restore it first");
  } else if (response.status == 403 && !options_.credentials.has_value()) {
    remedy("the store refuses anonymous access; give credentials instead of anonymous=true");
  } else if (response.status == 403) {
    remedy(
        absl::StrCat("check that the credentials may list and read the bucket ", options_.bucket));
  }
  return text;
}

std::string S3Store::Redacted(absl::string_view text) const {
  std::string clean(text);
  if (options_.credentials.has_value()) {
    for (const std::string* const secret :
         {&options_.credentials->secret_access_key, &options_.credentials->session_token}) {
      if (!secret->empty()) absl::StrReplaceAll({{*secret, "[secret]"}}, &clean);
    }
  }
  return Printable(clean);
}

}  // namespace

std::string S3Url(const S3Options& options, absl::string_view key, absl::string_view query) {
  const size_t host = options.endpoint.find("://") + 3;
  std::string url;
  if (options.path_style) {
    url = absl::StrCat(options.endpoint, "/", options.bucket, key.empty() ? "" : "/");
  } else {
    url = absl::StrCat(options.endpoint.substr(0, host), options.bucket, ".",
                       options.endpoint.substr(host), "/");
  }
  absl::StrAppend(&url, http::PercentEncodePath(key), query.empty() ? "" : "?", query);
  return url;
}

std::shared_ptr<Store> NewS3Store(S3Options options) {
  return std::make_shared<S3Store>(std::move(options));
}

}  // namespace millrace::store
