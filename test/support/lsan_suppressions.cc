// What LeakSanitizer must not report in tests that run gRPC.

extern "C" const char* __lsan_default_suppressions();
const char* __lsan_default_suppressions() {
  // c-ares of Debian 12, gRPC's resolver, loses ten bytes with each name it looks up.
  return "leak:libcares\n";
}
