#include "cache/config/runtime_config.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/base/units.h"
#include "common/net/address.h"

namespace millrace::config {
namespace {

using base::Json;

// The data port of workers, as millrace-worker has it by default.
constexpr int kWorkerPort = 7451;

absl::Status WrongType(absl::string_view path, absl::string_view wanted, const Json& value) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, " must be ", wanted, ", but is ", base::JsonTypeName(value)));
}

// A scalar as text: options are strings in the schema, but people write numbers and booleans.
absl::StatusOr<std::string> Scalar(const Json& value, absl::string_view path) {
  if (value.is_string()) return value.get_ref<const std::string&>();
  if (value.is_number() || value.is_boolean()) return base::JsonLine(value);
  return WrongType(path, "a string", value);
}

// The fields below return an empty value when the field is absent or null.
absl::StatusOr<std::string> StringField(const Json& object, const char* key,
                                        absl::string_view path) {
  const Json& value = base::JsonField(object, key);
  if (value.is_null()) return std::string();
  if (!value.is_string()) return WrongType(absl::StrCat(path, key), "a string", value);
  return value.get_ref<const std::string&>();
}

absl::StatusOr<std::vector<std::string>> ListField(const Json& object, const char* key,
                                                   absl::string_view path) {
  std::vector<std::string> items;
  const Json& value = base::JsonField(object, key);
  if (value.is_null()) return items;
  const std::string name = absl::StrCat(path, key);
  if (!value.is_array()) return WrongType(name, "a list of strings", value);
  for (size_t i = 0; i < value.size(); ++i) {
    ASSIGN_OR_RETURN(std::string item, Scalar(value[i], absl::StrCat(name, "[", i, "]")));
    items.push_back(std::move(item));
  }
  return items;
}

using Pairs = std::vector<std::pair<std::string, std::string>>;

absl::StatusOr<Pairs> MapField(const Json& object, const char* key, absl::string_view path) {
  Pairs pairs;
  const Json& value = base::JsonField(object, key);
  if (value.is_null()) return pairs;
  const std::string name = absl::StrCat(path, key);
  if (!value.is_object()) return WrongType(name, "an object", value);
  for (const auto& item : value.items()) {
    ASSIGN_OR_RETURN(std::string text, Scalar(item.value(), absl::StrCat(name, ".", item.key())));
    pairs.emplace_back(item.key(), std::move(text));
  }
  return pairs;
}

// Checks that an optional list of objects is one.
absl::StatusOr<const Json*> ObjectsField(const Json& object, const char* key,
                                         absl::string_view path) {
  static const Json* const empty = new Json(Json::array());
  const Json& value = base::JsonField(object, key);
  if (value.is_null()) return empty;
  const std::string name = absl::StrCat(path, key);
  if (!value.is_array()) return WrongType(name, "a list of objects", value);
  for (size_t i = 0; i < value.size(); ++i) {
    if (!value[i].is_object()) {
      return WrongType(absl::StrCat(name, "[", i, "]"), "an object", value[i]);
    }
  }
  return &value;
}

std::string PercentEncode(absl::string_view text) {
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || absl::StrContains("-_.~/:", c)) {
      encoded.push_back(c);
    } else {
      absl::StrAppendFormat(&encoded, "%%%02X", byte);
    }
  }
  return encoded;
}

// The directory a mount appears in: its path where it has one ("/" is the root), else its name.
absl::StatusOr<std::string> MountName(const Json& mount, absl::string_view where) {
  ASSIGN_OR_RETURN(const std::string name, StringField(mount, "name", where));
  ASSIGN_OR_RETURN(const std::string path, StringField(mount, "path", where));
  if (path.empty()) return name;
  const std::vector<absl::string_view> parts = absl::StrSplit(path, '/', absl::SkipEmpty());
  if (parts.empty()) return std::string();
  if (parts.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, "path is \"", path,
                     "\", but a mount appears directly below the root; "
                     "write one directory, as in \"/",
                     parts.back(), "\""));
  }
  return std::string(parts[0]);
}

absl::StatusOr<std::string> ParseMount(const Json& mount, absl::string_view where) {
  ASSIGN_OR_RETURN(const std::string url, StringField(mount, "mountPoint", where));
  if (url.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, "mountPoint is missing; write the URL of the data, as in \"s3://bucket/dir\""));
  }
  ASSIGN_OR_RETURN(const std::string name, MountName(mount, where));
  std::string source = name.empty() ? url : absl::StrCat(name, "=", url);
  ASSIGN_OR_RETURN(Pairs options, MapField(mount, "options", where));
  ASSIGN_OR_RETURN(const Pairs secrets, MapField(mount, "encryptOptions", where));
  for (const auto& [key, file] : secrets) {
    options.emplace_back(absl::EndsWith(key, "-file") ? key : absl::StrCat(key, "-file"), file);
  }
  char separator = absl::StrContains(url, '?') ? '&' : '?';
  for (const auto& [key, value] : options) {
    source.push_back(separator);
    absl::StrAppend(&source, PercentEncode(key), "=", PercentEncode(value));
    separator = '&';
  }
  return source;
}

absl::StatusOr<tier::Medium> ParseMedium(const Json& level, absl::string_view where) {
  ASSIGN_OR_RETURN(const std::string text, StringField(level, "mediumType", where));
  for (const tier::Medium medium : {tier::Medium::kMem, tier::Medium::kSsd, tier::Medium::kHdd}) {
    if (absl::EqualsIgnoreCase(text, tier::MediumName(medium))) return medium;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(where, "mediumType is \"", text, "\"; it must be MEM, SSD or HDD"));
}

// A water mark, written "0.95" or 0.95; `fallback` when absent.
absl::StatusOr<double> ParseMark(const Json& level, const char* key, absl::string_view where,
                                 double fallback) {
  const Json& value = base::JsonField(level, key);
  if (value.is_null()) return fallback;
  const std::string path = absl::StrCat(where, key);
  ASSIGN_OR_RETURN(const std::string text, Scalar(value, path));
  if (text.empty()) return fallback;
  double mark = 0;
  if (!absl::SimpleAtod(text, &mark) || !(mark > 0 && mark <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is \"", text, "\"; it must be a share above 0 and at most 1"));
  }
  return mark;
}

absl::Status ParseLevel(const Json& level, absl::string_view where,
                        std::vector<tier::TierOptions>* tiers) {
  tier::TierOptions options;
  ASSIGN_OR_RETURN(options.medium, ParseMedium(level, where));
  ASSIGN_OR_RETURN(options.high_water, ParseMark(level, "high", where, options.high_water));
  ASSIGN_OR_RETURN(options.low_water, ParseMark(level, "low", where, options.low_water));
  if (options.low_water > options.high_water) {
    return absl::InvalidArgumentError(absl::StrCat(where, "low (", options.low_water,
                                                   ") is above high (", options.high_water,
                                                   "); room would be made for ever"));
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> paths, ListField(level, "mountPaths", where));
  ASSIGN_OR_RETURN(const std::vector<std::string> quotas, ListField(level, "quotas", where));
  if (paths.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(where, "mountPaths names no directory"));
  }
  if (paths.size() != quotas.size()) {
    return absl::InvalidArgumentError(absl::StrCat(where, "quotas has ", quotas.size(),
                                                   " entries for the ", paths.size(),
                                                   " of mountPaths; give each path its quota"));
  }
  for (size_t i = 0; i < paths.size(); ++i) {
    options.path = paths[i];
    const absl::StatusOr<uint64_t> quota = base::ParseBytes(quotas[i]);
    if (!quota.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, "quotas[", i, "]: ", quota.status().message()));
    }
    options.quota_bytes = *quota;
    tiers->push_back(options);
  }
  return absl::OkStatus();
}

// The headless service of the workers: its name stands for all of them.
absl::Status ParseWorkers(const Json& file, std::vector<std::string>* workers) {
  const Json& worker = base::JsonField(file, "worker");
  if (worker.is_null()) return absl::OkStatus();
  if (!worker.is_object()) return WrongType("worker", "an object", worker);
  const Json& enabled = base::JsonField(worker, "enabled");
  if (enabled.is_null()) return absl::OkStatus();
  if (!enabled.is_boolean()) return WrongType("worker.enabled", "true or false", enabled);
  const Json& service = base::JsonField(worker, "service");
  if (service.is_null()) return absl::OkStatus();
  if (!service.is_object()) return WrongType("worker.service", "an object", service);
  ASSIGN_OR_RETURN(const std::string name, StringField(service, "name", "worker.service."));
  if (name.empty() || !enabled.get<bool>()) return absl::OkStatus();
  const absl::Status valid = net::ParseAddress(absl::StrCat(name, ":", kWorkerPort)).status();
  if (!valid.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("worker.service.name: ", valid.message()));
  }
  workers->push_back(absl::StrCat("dns:", name, ":", kWorkerPort));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RuntimeConfig> ParseRuntimeConfig(absl::string_view text,
                                                 const std::string& component) {
  ASSIGN_OR_RETURN(const Json json, base::ParseJson(text));
  if (!json.is_object()) return WrongType("the file", "a JSON object", json);
  RuntimeConfig config;
  ASSIGN_OR_RETURN(const Json* const mounts, ObjectsField(json, "mounts", ""));
  for (size_t i = 0; i < mounts->size(); ++i) {
    ASSIGN_OR_RETURN(std::string source,
                     ParseMount((*mounts)[i], absl::StrCat("mounts[", i, "].")));
    config.sources.push_back(std::move(source));
  }
  ASSIGN_OR_RETURN(config.target_path, StringField(json, "targetPath", ""));
  ASSIGN_OR_RETURN(const std::vector<std::string> modes, ListField(json, "accessModes", ""));
  for (const std::string& mode : modes) {
    config.read_write = config.read_write || absl::StartsWith(mode, "ReadWrite");
  }
  RETURN_IF_ERROR(ParseWorkers(json, &config.workers));
  const Json& part = base::JsonField(json, component.c_str());
  if (part.is_null()) return config;
  if (!part.is_object()) return WrongType(component, "an object", part);
  const std::string where = component + ".";
  ASSIGN_OR_RETURN(config.options, MapField(part, "options", where));
  ASSIGN_OR_RETURN(const Json* const levels, ObjectsField(part, "tieredStoreLevels", where));
  for (size_t i = 0; i < levels->size(); ++i) {
    RETURN_IF_ERROR(ParseLevel((*levels)[i], absl::StrCat(where, "tieredStoreLevels[", i, "]."),
                               &config.tiers));
  }
  return config;
}

}  // namespace millrace::config
