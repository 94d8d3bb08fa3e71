#include "common/base/version.h"

namespace millrace::base {

const char kVersion[] = MILLRACE_VERSION;

}  // namespace millrace::base
