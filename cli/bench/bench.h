// `millrace bench`: the project's own load generators.
//
// They work on any directory, so that a mount and a native disk are read by the very same code and
// a ratio between the two says something. Each prints one readable line per measurement, or with
// --json one JSON object.
#pragma once

namespace millrace::bench {

// `argv` is the part of the command line that begins with "bench". Exit code: 0, 1 when something
// could not be read or differed, 2 for a wrong command line; the cause goes to standard error.
int BenchMain(int argc, char** argv);

}  // namespace millrace::bench
