#include "bench/limiter/request_scanner.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace millrace::bench {
namespace {

using ::testing::ElementsAreArray;

const std::vector<std::string>& Requests() {
  // A body may look like a request, or like the end of a chunked body.
  static const auto* const kRequests = new std::vector<std::string>{
      "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
      "PUT /b HTTP/1.1\r\nContent-Length: 19\r\n\r\nGET / HTTP/1.1\r\n\r\nx",
      "PUT /c HTTP/1.1\r\ntransfer-ENCODING: chunked\r\n\r\n6;x=y\r\n\r\n0\r\n.\r\n0\r\n\r\n",
      "PUT /C HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
      "PUT /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nchecksum: abc\r\n\r\n",
      "PUT /e HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
      "GET /f HTTP/1.1\r\n\r\n",
  };
  return *kRequests;
}

// Feeds the stream in pieces of `step` bytes and cuts it where the scanner says.
std::vector<std::string> Cut(const std::string& stream, size_t step) {
  RequestScanner scanner;
  std::vector<std::string> found;
  for (size_t begin = 0; begin < stream.size(); begin += step) {
    absl::string_view piece = absl::string_view(stream).substr(begin, step);
    while (!piece.empty()) {
      if (scanner.at_start()) found.emplace_back();
      const absl::StatusOr<size_t> taken = scanner.Take(piece);
      if (!taken.ok()) {
        ADD_FAILURE() << taken.status();
        return found;
      }
      absl::StrAppend(&found.back(), piece.substr(0, *taken));
      piece.remove_prefix(*taken);
    }
  }
  EXPECT_TRUE(scanner.at_start());
  return found;
}

TEST(RequestScannerTest, CutsPipelinedRequestsAtEveryPieceSize) {
  std::string stream;
  for (const std::string& request : Requests()) stream += request;
  for (size_t step = 1; step <= stream.size(); ++step) {
    EXPECT_THAT(Cut(stream, step), ElementsAreArray(Requests())) << step;
  }
}

TEST(RequestScannerTest, RefusesWhatIsNoHttp) {
  for (const char* bad : {"hello\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
                          "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    RequestScanner scanner;
    EXPECT_FALSE(scanner.Take(bad).ok()) << bad;
  }
  RequestScanner scanner;
  EXPECT_FALSE(scanner.Take(std::string(100'000, 'x')).ok());
}

}  // namespace
}  // namespace millrace::bench
