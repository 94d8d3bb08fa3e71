#include "cache/store/http_store.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cache/store/html_index.h"
#include "cache/store/http_answer.h"
#include "cache/store/sample.h"
#include "common/base/mutex.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/http/client.h"
#include "common/http/fields.h"

namespace millrace::store {
namespace {

// An index page takes about 150 bytes an entry: this is a directory of 200,000.
constexpr uint64_t kIndexBytesMax = 32 * base::kMiB;
// HEADs in flight for one page of a listing.
constexpr size_t kHeadsMax = 16;
constexpr int kRedirectsMax = 5;
// What a read from a server without ranges may skip; beyond it every block would cost minutes.
constexpr uint64_t kSkipBytesMax = 4 * base::kGiB;
// Index pages kept between the pages of their listings.
constexpr size_t kCachedIndexesMax = 2;
constexpr size_t kSampleDirectoriesMax = 8;

using Links = std::vector<IndexLink>;

absl::string_view LastComponent(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

// Servers resolve "." and "..", which could lead out of the root, and merge empty components.
bool IsPlainPath(absl::string_view path) {
  if (path.empty()) return true;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == "." || part == ".." || absl::StrContains(part, '\0')) return false;
  }
  return true;
}

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

// "http://host:port" of a URL.
absl::string_view OriginOf(absl::string_view url) {
  const size_t host = url.find("://") + 3;
  return url.substr(0, url.find('/', host));
}

// Where a redirect of `url` leads; nothing for another host, and for https to http.
std::optional<std::string> RedirectTarget(absl::string_view url, absl::string_view location) {
  const absl::string_view origin = OriginOf(url);
  if (absl::StartsWith(location, "//")) return std::nullopt;  // Another host by its form.
  if (absl::StartsWith(location, "/")) return absl::StrCat(origin, location);
  if (!absl::StrContains(location, "://")) {
    return absl::StrCat(url.substr(0, url.rfind('/') + 1), location);
  }
  const absl::string_view target = OriginOf(location);
  const bool same = absl::EqualsIgnoreCase(target, origin);
  const bool upgrade = absl::StartsWithIgnoreCase(origin, "http://") &&
                       absl::StartsWithIgnoreCase(target, "https://") &&
                       absl::EqualsIgnoreCase(origin.substr(7), target.substr(8));
  if (!same && !upgrade) return std::nullopt;
  return std::string(location);
}

Entry DirectoryEntry(absl::string_view name) {
  Entry entry;
  entry.name = std::string(name);
  entry.kind = EntryKind::kDirectory;
  return entry;
}

class HttpStore : public Store {
 public:
  HttpStore(std::string base, std::string base_path, std::string ca_file)
      : base_(std::move(base)),
        base_path_(std::move(base_path)),
        client_({.ca_file = std::move(ca_file)}) {}

  absl::string_view kind() const override { return "http"; }
  absl::StatusOr<ListPage> List(const std::string& path, const std::string& token,
                                size_t max_entries, const CallOptions& call) override;
  absl::StatusOr<Entry> Stat(const std::string& path, const CallOptions& call) override;
  absl::Status Get(const GetRequest& request, BodySink sink, const CallOptions& call) override;
  absl::StatusOr<std::vector<Entry>> Sample(size_t max_objects, const CallOptions& call) override;

 private:
  std::string UrlOf(absl::string_view path, bool directory) const;
  std::string What(absl::string_view operation, absl::string_view path) const;
  http::Request NewRequest(std::string url, const CallOptions& call) const;

  // An answer, redirects followed; `url` becomes where it came from.
  absl::StatusOr<http::Response> Ask(http::Request* request, http::HeadCheck check,
                                     http::BodySink sink);
  absl::StatusOr<Links> FetchIndex(const std::string& path, const CallOptions& call);
  absl::StatusOr<std::shared_ptr<const Links>> IndexOf(const std::string& path, bool fresh,
                                                       const CallOptions& call);
  void Forget(const std::string& path);

  // Status and headers of an object; from a GET where the server does not know HEAD.
  absl::StatusOr<http::Response> Head(http::Request* request);
  absl::StatusOr<Entry> StatObject(const std::string& path, const CallOptions& call);
  // The entries of `links`; objects that are gone or closed to us are left out.
  absl::StatusOr<std::vector<Entry>> StatAll(const std::string& path,
                                             const std::vector<IndexLink>& links,
                                             const CallOptions& call);
  absl::Status AnswerError(const http::Response& response) const;

  const std::string base_;       // "http://host/dir/", encoded.
  const std::string base_path_;  // "/dir/", decoded.
  http::Client client_;

  base::Mutex mutex_;
  std::deque<std::pair<std::string, std::shared_ptr<const Links>>> indexes_ ABSL_GUARDED_BY(mutex_);
};

std::string HttpStore::UrlOf(absl::string_view path, bool directory) const {
  return absl::StrCat(base_, http::PercentEncodePath(path), directory && !path.empty() ? "/" : "");
}

std::string HttpStore::What(absl::string_view operation, absl::string_view path) const {
  return absl::StrCat("http: ", operation, " ", Printable(base_), Printable(path));
}

http::Request HttpStore::NewRequest(std::string url, const CallOptions& call) const {
  http::Request request;
  request.url = std::move(url);
  request.timeout = call.timeout;
  request.stall_timeout = call.stall_timeout;
  request.cancelled = call.cancelled;
  return request;
}

absl::Status HttpStore::AnswerError(const http::Response& response) const {
  std::string text = absl::StrCat("the server answered ", response.status);
  if (response.status == 401) absl::StrAppend(&text, "; it wants a login, which is not supported");
  if (response.status == 403) absl::StrAppend(&text, "; it shows no index, or refuses access");
  return HttpStatusError(response, text);
}

absl::StatusOr<http::Response> HttpStore::Ask(http::Request* request, http::HeadCheck check,
                                              http::BodySink sink) {
  for (int redirects = 0; redirects <= kRedirectsMax; ++redirects) {
    ASSIGN_OR_RETURN(http::Response response, client_.Stream(*request, check, sink));
    if (!IsRedirect(response.status)) return response;
    const absl::string_view location = response.Find("location").value_or("");
    std::optional<std::string> target = RedirectTarget(request->url, location);
    if (!target.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("the server redirects to another host, ",
                                                     Printable(OriginOf(location)),
                                                     "; use its URL as the source"));
    }
    request->url = *std::move(target);
  }
  return absl::InvalidArgumentError("the server redirects in a circle");
}

absl::StatusOr<Links> HttpStore::FetchIndex(const std::string& path, const CallOptions& call) {
  http::Request request = NewRequest(UrlOf(path, true), call);
  request.body_bytes_hint = base::kMiB;
  IndexParser parser(absl::StrCat(base_path_, path, path.empty() ? "" : "/"));
  uint64_t bytes = 0;
  const auto check = [](const http::Response& head) {
    if (absl::StartsWithIgnoreCase(head.Find("content-type").value_or(""), "text/html") ||
        absl::StartsWithIgnoreCase(head.Find("content-type").value_or(""),
                                   "application/xhtml+xml")) {
      return absl::OkStatus();
    }
    return absl::NotFoundError("it is no directory: the server does not answer with an index page");
  };
  const auto feed = [&](absl::string_view piece) {
    bytes += piece.size();
    if (bytes > kIndexBytesMax) return false;
    parser.Feed(piece);
    return true;
  };
  absl::StatusOr<http::Response> response = Ask(&request, check, feed);
  if (bytes > kIndexBytesMax) {
    return absl::InvalidArgumentError("the index page is larger than 32 MiB");
  }
  RETURN_IF_ERROR(response.status());
  if (response->status != 200) return AnswerError(*response);
  return parser.Finish();
}

absl::StatusOr<std::shared_ptr<const Links>> HttpStore::IndexOf(const std::string& path, bool fresh,
                                                                const CallOptions& call) {
  if (!fresh) {
    base::MutexLock lock(&mutex_);
    for (const auto& [cached, links] : indexes_) {
      if (cached == path) return links;
    }
  }
  ASSIGN_OR_RETURN(Links fetched, FetchIndex(path, call));
  auto links = std::make_shared<const Links>(std::move(fetched));
  Forget(path);
  base::MutexLock lock(&mutex_);
  indexes_.emplace_back(path, links);
  if (indexes_.size() > kCachedIndexesMax) indexes_.pop_front();
  return links;
}

void HttpStore::Forget(const std::string& path) {
  base::MutexLock lock(&mutex_);
  indexes_.erase(std::remove_if(indexes_.begin(), indexes_.end(),
                                [&](const auto& cached) { return cached.first == path; }),
                 indexes_.end());
}

absl::StatusOr<ListPage> HttpStore::List(const std::string& path, const std::string& token,
                                         size_t max_entries, const CallOptions& call) {
  if (!IsPlainPath(path)) {
    return absl::NotFoundError(absl::StrCat(What("list", path), ": no such directory"));
  }
  const absl::StatusOr<std::shared_ptr<const Links>> links = IndexOf(path, token.empty(), call);
  if (!links.ok()) return Prefixed(What("list", path), links.status());
  // A token is the last name of the page before: it survives a changed index.
  const auto begin = std::upper_bound(
      (*links)->begin(), (*links)->end(), token,
      [](const std::string& name, const IndexLink& link) { return name < link.name; });
  const auto first = token.empty() ? (*links)->begin() : begin;
  const auto left = static_cast<size_t>((*links)->end() - first);
  const size_t count = std::min(left, std::max<size_t>(max_entries, 1));
  absl::StatusOr<std::vector<Entry>> entries =
      StatAll(path, Links(first, first + static_cast<ptrdiff_t>(count)), call);
  if (!entries.ok()) return Prefixed(What("list", path), entries.status());
  ListPage page;
  page.entries = *std::move(entries);
  if (count < left) {
    page.next_token = (first + static_cast<ptrdiff_t>(count) - 1)->name;
  } else {
    Forget(path);
  }
  return page;
}

absl::StatusOr<std::vector<Entry>> HttpStore::StatAll(const std::string& path,
                                                      const std::vector<IndexLink>& links,
                                                      const CallOptions& call) {
  std::vector<std::optional<Entry>> found(links.size());
  std::atomic<size_t> next{0};
  base::Mutex mutex;
  absl::Status failure;
  const auto work = [&] {
    for (size_t i = next++; i < links.size(); i = next++) {
      if (links[i].directory) {
        found[i] = DirectoryEntry(links[i].name);
        continue;
      }
      absl::StatusOr<Entry> entry =
          StatObject(path.empty() ? links[i].name : absl::StrCat(path, "/", links[i].name), call);
      if (entry.ok()) {
        found[i] = *std::move(entry);
      } else if (entry.status().code() == absl::StatusCode::kUnavailable ||
                 entry.status().code() == absl::StatusCode::kDeadlineExceeded ||
                 entry.status().code() == absl::StatusCode::kCancelled) {
        base::MutexLock lock(&mutex);
        failure = entry.status();
        next = links.size();
      }
    }
  };
  const auto heads = static_cast<size_t>(std::count_if(
      links.begin(), links.end(), [](const IndexLink& link) { return !link.directory; }));
  std::vector<std::thread> helpers;
  for (size_t i = 1; i < std::min(heads, kHeadsMax); ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  RETURN_IF_ERROR(failure);
  std::vector<Entry> entries;
  entries.reserve(links.size());
  for (std::optional<Entry>& entry : found) {
    if (entry.has_value()) entries.push_back(*std::move(entry));
  }
  return entries;
}

absl::StatusOr<http::Response> HttpStore::Head(http::Request* request) {
  request->method = http::Method::kHead;
  ASSIGN_OR_RETURN(http::Response response, client_.Fetch(*request));
  if (response.status != 405 && response.status != 501) return response;
  request->method = http::Method::kGet;
  request->headers.push_back({"Range", "bytes=0-0"});
  std::optional<http::Response> head;
  const auto keep = [&head](const http::Response& answer) {
    head = answer;
    return absl::OkStatus();
  };
  absl::StatusOr<http::Response> answer =
      client_.Stream(*request, keep, [](absl::string_view) { return false; });
  request->headers.clear();
  if (head.has_value()) return *std::move(head);
  return answer;
}

absl::StatusOr<Entry> HttpStore::StatObject(const std::string& path, const CallOptions& call) {
  http::Request request = NewRequest(UrlOf(path, false), call);
  for (int redirects = 0; redirects <= kRedirectsMax; ++redirects) {
    ASSIGN_OR_RETURN(const http::Response response, Head(&request));
    if (IsRedirect(response.status)) {
      const absl::string_view location = response.Find("location").value_or("");
      std::optional<std::string> target = RedirectTarget(request.url, location);
      if (!target.has_value()) {
        return absl::InvalidArgumentError("the server redirects to another host");
      }
      // Every server sends one who asks for "dir" to "dir/".
      const auto before = http::PercentDecode(request.url.substr(OriginOf(request.url).size()));
      const auto after = http::PercentDecode(target->substr(OriginOf(*target).size()));
      if (before.has_value() && after.has_value() && *after == *before + "/") {
        return DirectoryEntry(LastComponent(path));
      }
      request.url = *std::move(target);
      continue;
    }
    if (response.status != 200 && response.status != 206) return AnswerError(response);
    std::optional<uint64_t> size = response.ContentLength();
    if (response.status == 206) {
      const auto range = http::ParseContentRange(response.Find("content-range").value_or(""));
      size = range.has_value() ? range->total : std::nullopt;
    }
    if (!size.has_value()) {
      return absl::InvalidArgumentError("the server does not tell the object's size");
    }
    Entry entry;
    entry.name = std::string(LastComponent(path));
    entry.size = *size;
    entry.mtime = http::ParseHttpDate(response.Find("last-modified").value_or(""))
                      .value_or(absl::UnixEpoch());
    entry.version = VersionOf(response, *size);
    return entry;
  }
  return absl::InvalidArgumentError("the server redirects in a circle");
}

absl::StatusOr<Entry> HttpStore::Stat(const std::string& path, const CallOptions& call) {
  if (!IsPlainPath(path)) {
    return absl::NotFoundError(absl::StrCat(What("stat", path), ": no such object"));
  }
  if (path.empty()) {
    http::Request request = NewRequest(UrlOf("", true), call);
    const absl::StatusOr<http::Response> response = Head(&request);
    if (!response.ok()) return Prefixed(What("stat", path), response.status());
    if (response->status >= 400) return Prefixed(What("stat", path), AnswerError(*response));
    return DirectoryEntry("");
  }
  absl::StatusOr<Entry> entry = StatObject(path, call);
  if (!entry.ok()) return Prefixed(What("stat", path), entry.status());
  return entry;
}

absl::Status HttpStore::Get(const GetRequest& get, BodySink sink, const CallOptions& call) {
  if (!IsPlainPath(get.path) || get.path.empty()) {
    return absl::NotFoundError(absl::StrCat(What("get", get.path), ": no such object"));
  }
  http::Request request = NewRequest(UrlOf(get.path, false), call);
  request.body_bytes_hint = get.length;
  AddRangeHeaders(get, &request.headers);
  BodyWindow window;
  WindowSink body(&window, get.length, sink);
  const auto check = [&](const http::Response& head) {
    return CheckGetAnswer(head, get, kSkipBytesMax, &window);
  };
  const absl::StatusOr<http::Response> response =
      Ask(&request, check, [&body](absl::string_view piece) { return body(piece); });
  // A server without ranges sends more than was asked for: the transfer was ended on purpose.
  if (body.complete() && !body.refused()) return absl::OkStatus();
  if (!response.ok()) return Prefixed(What("get", get.path), response.status());
  if (response->status < 200 || response->status > 299) {
    return Prefixed(What("get", get.path), AnswerError(*response));
  }
  return absl::UnavailableError(absl::StrCat(What("get", get.path), ": short body: ", body.passed(),
                                             " of ", get.length, " bytes"));
}

absl::StatusOr<std::vector<Entry>> HttpStore::Sample(size_t max_objects, const CallOptions& call) {
  return SampleDirectories(*this, max_objects, kSampleDirectoriesMax, call);
}

}  // namespace

absl::StatusOr<std::shared_ptr<Store>> NewHttpStore(const Uri& uri) {
  RETURN_IF_ERROR(CheckOptions(uri, {"ca-file"}));
  if (uri.authority.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(uri.text, ": no host; write it like ", uri.scheme, "://host/dir/"));
  }
  if (!IsPlainPath(uri.path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(uri.text, ": the path holds \".\", \"..\" or \"//\"; write it without"));
  }
  const std::string path = uri.path.empty() ? "/" : absl::StrCat("/", uri.path, "/");
  return std::make_shared<HttpStore>(
      absl::StrCat(uri.scheme, "://", uri.authority, http::PercentEncodePath(path)), path,
      std::string(OptionOr(uri, "ca-file", "")));
}

}  // namespace millrace::store
