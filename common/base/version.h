// The version of the programs: project(VERSION) of the top CMakeLists.txt.
#pragma once

namespace millrace::base {

extern const char kVersion[];

}  // namespace millrace::base
