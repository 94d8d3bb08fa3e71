#include "common/base/json.h"

#include "absl/strings/str_cat.h"

namespace millrace::base {
namespace {

// Deep nesting is refused before a value is built: destroying one recurses.
constexpr int kDepthMax = 64;

// Follows the parser's events only to find where it stops, and how deep it gets.
class SyntaxCheck : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(size_t) override { return Enter(); }
  bool key(string_t&) override { return true; }
  bool end_object() override { return Leave(); }
  bool start_array(size_t) override { return Enter(); }
  bool end_array() override { return Leave(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    position_ = position;
    return false;
  }

  absl::Status Error() const {
    if (depth_ > kDepthMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("not acceptable JSON: nested deeper than ", kDepthMax, " levels"));
    }
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON at byte ", position_));
  }

 private:
  bool Enter() { return ++depth_ <= kDepthMax; }
  bool Leave() {
    --depth_;
    return true;
  }

  size_t position_ = 0;
  int depth_ = 0;
};

}  // namespace

absl::StatusOr<Json> ParseJson(absl::string_view text) {
  SyntaxCheck check;
  if (!Json::sax_parse(text.begin(), text.end(), &check)) return check.Error();
  return Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
}

std::string JsonLine(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string JsonPretty(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

const Json& JsonField(const Json& object, const char* key) {
  static const Json* const null = new Json;
  if (!object.is_object()) return *null;
  const auto found = object.find(key);
  return found == object.end() ? *null : *found;
}

std::string JsonString(const Json& object, const char* key) {
  const Json& field = JsonField(object, key);
  return field.is_string() ? field.get_ref<const std::string&>() : std::string();
}

uint64_t JsonUnsigned(const Json& object, const char* key) {
  const Json& field = JsonField(object, key);
  return field.is_number_unsigned() ? field.get<uint64_t>() : 0;
}

double JsonDouble(const Json& object, const char* key) {
  const Json& field = JsonField(object, key);
  return field.is_number() ? field.get<double>() : 0;
}

bool JsonBool(const Json& object, const char* key) {
  const Json& field = JsonField(object, key);
  return field.is_boolean() && field.get<bool>();
}

absl::string_view JsonTypeName(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "a list";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
    case Json::value_t::number_float:
      return "a number";
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  return "nothing";
}

}  // namespace millrace::base
