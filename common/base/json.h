// JSON without exceptions: the few calls of nlohmann::json that cannot throw, under names that say
// so. Everything that reads a text from outside, or writes one, goes through here.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace millrace::base {

using Json = nlohmann::json;

// InvalidArgument with the byte where `text` stops being JSON, and for nesting beyond 64 levels.
absl::StatusOr<Json> ParseJson(absl::string_view text);

// One line. Bytes that are not UTF-8 (a hostile file name) become U+FFFD instead of an exception.
std::string JsonLine(const Json& json);
// Indented by two, for people.
std::string JsonPretty(const Json& json);

// Fields of an object, or the fallback when `object` is none, the field is absent or of another
// type: for answers of a program of another version.
std::string JsonString(const Json& object, const char* key);
uint64_t JsonUnsigned(const Json& object, const char* key);
double JsonDouble(const Json& object, const char* key);
bool JsonBool(const Json& object, const char* key);
// The field, or a null value that lives for ever.
const Json& JsonField(const Json& object, const char* key);

// "a string", "a list", …: the type of a value in an error message.
absl::string_view JsonTypeName(const Json& value);

}  // namespace millrace::base
