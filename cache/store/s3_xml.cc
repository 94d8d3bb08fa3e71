#include "cache/store/s3_xml.h"

#include <libxml/parser.h>
#include <libxml/parserInternals.h>

#include <mutex>
#include <optional>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/http/fields.h"

namespace millrace::store {
namespace {

// An S3 answer nests four deep; deeper text is something else.
constexpr size_t kDepthMax = 16;
// Keys are at most 1024 bytes, three times that when encoded; messages are short.
constexpr size_t kTextBytesMax = 16 * 1024;

// Called at the end of each element with its path ("ListBucketResult/Contents/Key") and its text.
using ElementSink = absl::FunctionRef<void(absl::string_view path, absl::string_view text)>;

class Reader {
 public:
  explicit Reader(ElementSink sink) : sink_(sink) {}

  bool Read(absl::string_view xml);

 private:
  static void OnStart(void* self, const xmlChar* name, const xmlChar*, const xmlChar*, int,
                      const xmlChar**, int, int, const xmlChar**);
  static void OnEnd(void* self, const xmlChar* name, const xmlChar*, const xmlChar*);
  static void OnText(void* self, const xmlChar* text, int bytes);
  static void OnDoctype(void* self, const xmlChar*, const xmlChar*, const xmlChar*);

  void Refuse() {
    refused_ = true;
    xmlStopParser(context_);
  }

  const ElementSink sink_;
  xmlParserCtxtPtr context_ = nullptr;
  bool refused_ = false;
  std::string path_;
  size_t depth_ = 0;
  std::string text_;
};

void Reader::OnStart(void* self, const xmlChar* name, const xmlChar*, const xmlChar*, int,
                     const xmlChar**, int, int, const xmlChar**) {
  auto* const reader = static_cast<Reader*>(self);
  if (reader->refused_) return;
  const absl::string_view local(reinterpret_cast<const char*>(name));
  if (++reader->depth_ > kDepthMax || local.size() > kTextBytesMax) {
    reader->Refuse();
    return;
  }
  absl::StrAppend(&reader->path_, reader->depth_ > 1 ? "/" : "", local);
  reader->text_.clear();
}

void Reader::OnEnd(void* self, const xmlChar*, const xmlChar*, const xmlChar*) {
  auto* const reader = static_cast<Reader*>(self);
  if (reader->refused_ || reader->depth_ == 0) return;
  reader->sink_(reader->path_, reader->text_);
  reader->text_.clear();
  --reader->depth_;
  const size_t slash = reader->path_.rfind('/');
  reader->path_.resize(slash == std::string::npos ? 0 : slash);
}

void Reader::OnText(void* self, const xmlChar* text, int bytes) {
  auto* const reader = static_cast<Reader*>(self);
  if (reader->refused_) return;
  reader->text_.append(reinterpret_cast<const char*>(text), static_cast<size_t>(bytes));
  if (reader->text_.size() > kTextBytesMax) reader->Refuse();
}

void Reader::OnDoctype(void* self, const xmlChar*, const xmlChar*, const xmlChar*) {
  static_cast<Reader*>(self)->Refuse();
}

bool Reader::Read(absl::string_view xml) {
  static std::once_flag initialised;
  std::call_once(initialised, [] { xmlInitParser(); });
  xmlSAXHandler handler{};
  handler.initialized = XML_SAX2_MAGIC;
  handler.startElementNs = &Reader::OnStart;
  handler.endElementNs = &Reader::OnEnd;
  handler.characters = &Reader::OnText;
  handler.cdataBlock = &Reader::OnText;
  handler.internalSubset = &Reader::OnDoctype;
  context_ = xmlCreatePushParserCtxt(&handler, this, nullptr, 0, nullptr);
  if (context_ == nullptr) return false;
  xmlCtxtUseOptions(context_, XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
  // Fed in pieces: xmlParseChunk takes an int, and a refusal then ends the work early.
  constexpr size_t kPieceBytes = 64 * 1024;
  int error = 0;
  while (error == 0 && !refused_ && !xml.empty()) {
    const absl::string_view piece = xml.substr(0, kPieceBytes);
    error = xmlParseChunk(context_, piece.data(), static_cast<int>(piece.size()), 0);
    xml.remove_prefix(piece.size());
  }
  if (error == 0 && !refused_) error = xmlParseChunk(context_, nullptr, 0, 1);
  const bool well_formed = error == 0 && !refused_ && context_->wellFormed == 1;
  xmlDocPtr const document = context_->myDoc;
  xmlFreeParserCtxt(context_);
  if (document != nullptr) xmlFreeDoc(document);
  return well_formed;
}

std::string Unquoted(absl::string_view etag) {
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') {
    etag = etag.substr(1, etag.size() - 2);
  }
  return std::string(etag);
}

// A listing under construction.
class ListingBuilder {
 public:
  void Add(absl::string_view path, absl::string_view text) {
    if (!absl::ConsumePrefix(&path, "ListBucketResult")) return;
    is_listing_ = true;
    if (path == "/Contents/Key") {
      object_.key = std::string(text);
    } else if (path == "/Contents/Size") {
      // What is no number leaves the object out as malformed. A size that no file can have is kept,
      // so that whoever hides the object can count it.
      size_known_ =
          !text.empty() && text.find_first_not_of("0123456789") == absl::string_view::npos;
      if (!absl::SimpleAtoi(text, &object_.size)) object_.size = UINT64_MAX;
    } else if (path == "/Contents/LastModified") {
      object_.mtime = http::ParseIsoTime(text).value_or(absl::UnixEpoch());
    } else if (path == "/Contents/ETag") {
      object_.etag = Unquoted(text);
    } else if (path == "/Contents") {
      if (size_known_) listing_.objects.push_back(std::move(object_));
      object_ = {};
      size_known_ = false;
    } else if (path == "/CommonPrefixes/Prefix") {
      listing_.prefixes.emplace_back(text);
    } else if (path == "/NextContinuationToken") {
      listing_.next_token = std::string(text);
    } else if (path == "/IsTruncated") {
      truncated_ = text == "true";
    } else if (path == "/EncodingType") {
      encoded_ = text == "url";
    }
  }

  absl::StatusOr<S3Listing> Take() {
    if (!is_listing_) return absl::InvalidArgumentError("the answer is not an S3 listing");
    if (!truncated_) {
      listing_.next_token.clear();
    } else if (listing_.next_token.empty()) {
      return absl::InvalidArgumentError(
          "the listing is cut off without a token for the rest: the store does not support "
          "ListObjectsV2");
    }
    // A store that ignored encoding-type=url says so by its silence.
    if (encoded_) {
      for (S3Listing::Object& object : listing_.objects)
        RETURN_IF_ERROR(DecodeInPlace(&object.key));
      for (std::string& prefix : listing_.prefixes) RETURN_IF_ERROR(DecodeInPlace(&prefix));
    }
    return std::move(listing_);
  }

 private:
  static absl::Status DecodeInPlace(std::string* text) {
    std::optional<std::string> decoded = http::FormDecode(*text);
    if (!decoded.has_value()) {
      return absl::InvalidArgumentError("a key of the listing is not validly URL-encoded");
    }
    *text = *std::move(decoded);
    return absl::OkStatus();
  }

  S3Listing listing_;
  S3Listing::Object object_;
  bool size_known_ = false;
  bool truncated_ = false;
  bool encoded_ = false;
  bool is_listing_ = false;
};

}  // namespace

absl::StatusOr<S3Listing> ParseS3Listing(absl::string_view xml) {
  ListingBuilder builder;
  const auto add = [&builder](absl::string_view path, absl::string_view text) {
    builder.Add(path, text);
  };
  if (!Reader(add).Read(xml)) {
    return absl::InvalidArgumentError("the answer is not well-formed XML");
  }
  return builder.Take();
}

S3Error ParseS3Error(absl::string_view xml) {
  S3Error error;
  const auto take = [&error](absl::string_view path, absl::string_view text) {
    if (path == "Error/Code") error.code = std::string(text);
    if (path == "Error/Message") error.message = std::string(text);
    if (path == "Error/Region") error.region = std::string(text);
    if (path == "Error/Endpoint") error.endpoint = std::string(text);
  };
  if (!Reader(take).Read(xml)) return {};
  return error;
}

}  // namespace millrace::store
