// A directory tree on a web server that writes index pages (nginx autoindex, Apache mod_autoindex,
// Python's http.server, …).
//
// The page gives names; size, time and version of each object come from a HEAD, sent in parallel
// while a page of a listing is made, since index pages round sizes and know no ETag. A server
// without ranges works too: what lies before the bytes asked for is read and dropped. Redirects are
// followed only within the same host.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cache/store/store.h"
#include "cache/store/uri.h"

namespace millrace::store {

// Option: ca-file.
absl::StatusOr<std::shared_ptr<Store>> NewHttpStore(const Uri& uri);

}  // namespace millrace::store
