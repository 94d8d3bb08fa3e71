#include "cache/store/registry.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/store/file_store.h"
#include "cache/store/http_answer.h"
#include "cache/store/http_store.h"
#include "cache/store/s3_options.h"
#include "cache/store/s3_store.h"
#include "cache/store/uri.h"
#include "common/base/status_macros.h"

namespace millrace::store {
namespace {

absl::StatusOr<std::shared_ptr<Store>> OpenFile(const Uri& uri) {
  RETURN_IF_ERROR(CheckOptions(uri, {}));
  if (!uri.authority.empty() && uri.authority != "localhost") {
    return absl::InvalidArgumentError(
        absl::StrCat(uri.text, ": a file URL has three slashes; did you mean file:///",
                     uri.authority, "/", uri.path, "?"));
  }
  return NewFileStore(absl::StrCat("/", uri.path));
}

absl::StatusOr<std::shared_ptr<Store>> OpenS3(const Uri& uri) {
  ASSIGN_OR_RETURN(S3Options options, S3OptionsFromUri(uri, ProcessEnvironment()));
  return NewS3Store(std::move(options));
}

struct Scheme {
  absl::string_view name;
  absl::StatusOr<std::shared_ptr<Store>> (*open)(const Uri& uri);
};

// A new kind of store is a line here.
constexpr Scheme kSchemes[] = {
    {"file", &OpenFile},     {"s3", &OpenS3},          {"oss", &OpenS3},
    {"http", &NewHttpStore}, {"https", &NewHttpStore},
};

absl::Status UnknownScheme(const Uri& uri) {
  std::string known;
  for (const Scheme& scheme : kSchemes) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", scheme.name, "://");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no store is named ", uri.scheme, "://; known are ", known));
}

const Scheme* FindScheme(const Uri& uri) {
  for (const Scheme& scheme : kSchemes) {
    if (scheme.name == uri.scheme) return &scheme;
  }
  return nullptr;
}

Source SourceOf(const Uri& uri) {
  Source source;
  source.name = uri.name;
  source.url = uri.text;
  const absl::string_view endpoint = OptionOr(uri, "endpoint", "");
  source.identity = endpoint.empty() ? uri.text : absl::StrCat(uri.text, "?endpoint=", endpoint);
  return source;
}

}  // namespace

absl::StatusOr<OpenedSource> OpenSource(absl::string_view text) {
  ASSIGN_OR_RETURN(const Uri uri, ParseUri(text));
  const Scheme* const scheme = FindScheme(uri);
  if (scheme == nullptr) return UnknownScheme(uri);
  OpenedSource opened;
  opened.source = SourceOf(uri);
  ASSIGN_OR_RETURN(opened.store, scheme->open(uri));
  return opened;
}

absl::StatusOr<OpenedSource> ReopenSource(absl::string_view text) {
  ASSIGN_OR_RETURN(const Uri uri, ParseUri(text));
  const Scheme* const scheme = FindScheme(uri);
  if (scheme == nullptr) return UnknownScheme(uri);
  OpenedSource opened;
  opened.source = SourceOf(uri);
  absl::StatusOr<std::shared_ptr<Store>> store = scheme->open(uri);
  opened.store = store.ok()
                     ? *std::move(store)
                     : NewLateStore(scheme->name, [uri, scheme] { return scheme->open(uri); });
  return opened;
}

absl::Status CheckAccess(const OpenedSource& source, const CallOptions& call) {
  return source.store->List("", "", 1, call).status();
}

}  // namespace millrace::store
