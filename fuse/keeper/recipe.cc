#include "fuse/keeper/recipe.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/errno_status.h"

extern char** environ;

namespace millrace::keeper {
namespace {

// Linux takes 6 MiB of arguments and environment at most (a quarter of the stack).
constexpr off_t kBytesMax = 16 << 20;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
constexpr char kHeader[] = "millrace-recipe 1";

}  // namespace

// A header, the number of arguments, then all words, each ended by a NUL, which none can contain.
absl::StatusOr<base::UniqueFd> WriteRecipe(const Recipe& recipe) {
  std::string text =
      absl::StrCat(kHeader, std::string(1, '\0'), recipe.arguments.size(), std::string(1, '\0'));
  for (const auto* list : {&recipe.arguments, &recipe.environment}) {
    for (const std::string& word : *list) absl::StrAppend(&text, word, std::string(1, '\0'));
  }
  base::UniqueFd memfd(memfd_create("millrace-recipe", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memfd.valid()) return base::ErrnoStatus(errno, "memfd_create");
  if (write(memfd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      fcntl(memfd.get(), F_ADD_SEALS, kSeals) != 0) {
    return base::ErrnoStatus(errno, "the recipe");
  }
  return memfd;
}

absl::StatusOr<Recipe> ReadRecipe(int memfd) {
  struct stat st;
  if (fstat(memfd, &st) != 0) return base::ErrnoStatus(errno, "the recipe");
  const int seals = fcntl(memfd, F_GET_SEALS);
  if (st.st_uid != geteuid() || seals < 0 || (seals & kSeals) != kSeals) {
    return absl::InvalidArgumentError("a recipe that no keeper of this user wrote");
  }
  std::string text(static_cast<size_t>(std::min(st.st_size, kBytesMax)), '\0');
  const ssize_t size = pread(memfd, text.data(), text.size(), 0);
  if (size != st.st_size) return absl::InvalidArgumentError("a recipe that cannot be read whole");
  std::vector<std::string> words = absl::StrSplit(text, '\0');
  size_t count = 0;
  if (words.size() < 3 || words[0] != kHeader || !words.back().empty() ||
      !absl::SimpleAtoi(words[1], &count) || count > words.size() - 3) {
    return absl::InvalidArgumentError("no recipe of this version");
  }
  const auto first = words.begin() + 2;
  Recipe recipe;
  recipe.arguments.assign(first, first + static_cast<std::ptrdiff_t>(count));
  recipe.environment.assign(first + static_cast<std::ptrdiff_t>(count), words.end() - 1);
  return recipe;
}

std::vector<std::string> CurrentEnvironment() {
  std::vector<std::string> environment;
  for (char** each = environ; each != nullptr && *each != nullptr; ++each) {
    environment.emplace_back(*each);
  }
  return environment;
}

void ReplaceEnvironment(const std::vector<std::string>& environment) {
  clearenv();
  for (const std::string& pair : environment) {
    const size_t equals = pair.find('=');
    if (equals == std::string::npos) continue;
    setenv(pair.substr(0, equals).c_str(), pair.substr(equals + 1).c_str(), 1);
  }
}

}  // namespace millrace::keeper
