#include "cache/store/local_files.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "cache/store/s3_options.h"
#include "cache/store/uri.h"
#include "common/base/status_macros.h"

namespace millrace::store {

absl::StatusOr<LocalFiles> LocalFilesOf(absl::string_view source, const Environment& environment) {
  ASSIGN_OR_RETURN(const Uri uri, ParseUri(source));
  LocalFiles local;
  const auto add = [&local](std::string file) {
    if (!file.empty()) local.files.push_back(std::move(file));
  };
  if (uri.scheme == "file") {
    local.directories.push_back(absl::StrCat("/", uri.path));
  } else if (uri.scheme == "s3" || uri.scheme == "oss") {
    ASSIGN_OR_RETURN(const bool anonymous, BoolOptionOr(uri, "anonymous", false));
    if (!anonymous) add(CredentialsFile(S3CredentialsQuery(uri), environment));
    add(S3CaFile(uri, environment));
  } else {
    add(std::string(OptionOr(uri, "ca-file", "")));
  }
  return local;
}

}  // namespace millrace::store
