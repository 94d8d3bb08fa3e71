// What ThreadSanitizer must not report: linked into every test of a ThreadSanitizer build.
//
// A status that two threads hold copies of counts its references with atomics, partly in absl's
// own library, which the distribution built without ThreadSanitizer: the last release then looks
// like a race with an earlier one. The same for its table of the texts of errno.
extern "C" const char* __tsan_default_suppressions();

const char* __tsan_default_suppressions() {
  return "race:absl::*::Status::Unref\n"
         "race:absl::*::base_internal::StrError\n";
}
