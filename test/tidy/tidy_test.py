#!/usr/bin/env python3
"""Enforces what no compiler does: who may include whom, and the habits of the house.

Each rule is a function from one file to its violations; TidyTest runs all rules over the
repository, RulesTest proves that each rule catches what it is for. To allow a new edge between
rooms, change MAY_INCLUDE in the same commit, and say there why.
"""

import collections
import pathlib
import re
import subprocess
import sys
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COLUMNS_MAX = 100
LINES_HINT = 800

COMMON = {"common/base", "common/control", "common/io", "common/http", "common/metrics",
          "common/net", "common/proto"}
CACHE = {"cache/config", "cache/store", "cache/tier", "cache/fetch", "cache/index", "cache/pool"}
FUSE = {"fuse/options", "fuse/vfs", "fuse/adapter", "fuse/keeper", "fuse/daemon"}
EVERYTHING = COMMON | CACHE | FUSE | {"cache/worker", "cli", "bench", "test"}

# The rooms, and which other rooms each may include. Nothing sees test and bench.
MAY_INCLUDE = {
    "common/base": set(),
    "common/control": {"common/base"},
    "common/io": {"common/base"},
    "common/http": {"common/base"},
    "common/metrics": {"common/base"},
    "common/net": {"common/base"},
    "common/proto": {"common/base"},
    "cache/store": COMMON,
    "cache/tier": COMMON | {"cache/store"},
    # What runtime.json says of tiers, for a mount's options and a worker's.
    "cache/config": COMMON | {"cache/tier"},
    "cache/fetch": COMMON | {"cache/store", "cache/tier"},
    "cache/index": COMMON | {"cache/store"},
    "cache/pool": COMMON | {"cache/store", "cache/tier", "cache/index"},
    "cache/worker": COMMON | CACHE,
    # The parser of --tier is the tier's own, and which files a source reads its store's.
    "fuse/options": COMMON | {"cache/config", "cache/store", "cache/tier", "cache/pool"},
    "fuse/vfs": COMMON | CACHE,
    "fuse/adapter": COMMON | {"fuse/vfs"},
    "fuse/daemon": COMMON | CACHE | FUSE,
    "fuse/keeper": COMMON,
    "cli": COMMON,
    "bench": EVERYTHING,
    "test": EVERYTHING,
}

# Programs whose main file joins its room with others, which the room as a library must not see.
MAIN_MAY_INCLUDE = {
    "fuse/keeper/main.cc": {"fuse/options"},  # The keeper is a library of the node plugin too.
}

# Foreign headers that stay in one room (and in the tests of that room, test/ROOM).
FOREIGN = [
    (r"(linux/)?[fc]use(3/|_|\.h)", {"fuse/adapter"}),
    (r"liburing", {"common/io"}),
    (r"curl/", {"common/http", "bench"}),  # The benchmark's bound must not run on our own client.
    (r"libxml/", {"cache/store"}),
    (r"(grpc|grpcpp|google/protobuf)/", {"common/proto", "cache/worker"}),
    (r"prometheus/", {"common/metrics"}),
    (r"(gtest|gmock)/", {"test"}),
    (r"benchmark/", {"bench"}),
]

BANNED_CALLS = [
    (r"(?:std::)?system", "fork and exec with a list of arguments"),
    (r"popen", "fork and exec with a list of arguments"),
    (r"(?:std::)?strcpy|(?:std::)?strcat", "std::string"),
    (r"(?:std::)?v?sprintf", "absl::StrFormat or absl::StrCat"),
    (r"(?:std::)?strtok|gets", "absl::StrSplit or std::getline"),
    (r"(?:std::)?ato[il]l?", "absl::SimpleAtoi"),
    (r"(?:std::)?s?rand", "a generator with a seed that the caller gives"),
]
SLEEPS = r"\b(?:sleep_for|sleep_until|usleep|nanosleep|SleepFor|time\.sleep|sleep)\s*\("
ALLOW_SLEEP = r"tidy: allow-sleep \S"

# Written apart so that this file passes its own rule.
UNFINISHED = r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b"

File = collections.namedtuple("File", "path text")
Violation = collections.namedtuple("Violation", "path line message")


def is_cpp(path):
    return path.endswith((".cc", ".h"))


def room_of(path):
    """The room a file belongs to, or None."""
    for room in MAY_INCLUDE:
        if path.startswith(room + "/"):
            return room
    return None


def numbered(text):
    return enumerate(text.splitlines(), start=1)


def without_comments_and_strings(text):
    """C++ source with those blanked, its lines kept."""
    token = re.compile(
        r'R"(?P<tag>[^(\s]*)\(.*?\)(?P=tag)"'
        r'|"(?:\\.|[^"\\\n])*"'
        r"|'(?:\\[^'\n]+|\\'|[^'\\\n])'"
        r"|//[^\n]*"
        r"|/\*.*?\*/",
        re.DOTALL)
    return token.sub(lambda match: " " + "\n" * match[0].count("\n"), text)


# --- The rules ------------------------------------------------------------------------------------


def includes_follow_the_rooms(file):
    if not is_cpp(file.path):
        return
    room = room_of(file.path)
    if room is None:
        yield Violation(file.path, 1, "is in no room that this test knows")
        return
    top_folders = {known.split("/")[0] for known in MAY_INCLUDE}
    for line, text in numbered(file.text):
        match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', text)
        if not match:
            continue
        target = match[2]
        if match[1] == '"' and target.split("/")[0] in top_folders:
            target_room = room_of(target)
            if target_room is None:
                yield Violation(file.path, line, f"{target} is in no room that this test knows")
            elif target_room != room and target_room not in (
                    MAY_INCLUDE[room] | MAIN_MAY_INCLUDE.get(file.path, set())):
                yield Violation(file.path, line, f"{room} may not include {target_room} ({target})")
        elif match[1] == '"' and "/" not in target and not re.match(FOREIGN[0][0], target):
            yield Violation(file.path, line, f"include {target} by its path from the root")
        else:
            yield from foreign_header_is_at_home(file, line, room, target)


def foreign_header_is_at_home(file, line, room, target):
    tested_room = room_of(file.path.removeprefix("test/"))
    for pattern, homes in FOREIGN:
        if re.match(pattern, target) and not {room, tested_room} & homes:
            yield Violation(file.path, line,
                            f"<{target}> belongs to {' and '.join(sorted(homes))} only")


def no_banned_call(file):
    if not is_cpp(file.path):
        return
    for line, text in numbered(without_comments_and_strings(file.text)):
        for pattern, instead in BANNED_CALLS:
            match = re.search(rf"(?<![\w.>:])(?:{pattern})\s*\(", text)
            if match:
                yield Violation(file.path, line, f"{match[0]}) is banned: use {instead}")


def no_sleep_in_tests(file):
    if not file.path.startswith("test/") or not file.path.endswith((".cc", ".h", ".py")):
        return
    lines = file.text.splitlines()
    for number, text in enumerate(lines):
        if not re.search(SLEEPS, re.sub(r'"[^"]*"|//.*|#.*', "", text)):
            continue
        if not any(re.search(ALLOW_SLEEP, near) for near in lines[max(0, number - 1):number + 1]):
            yield Violation(file.path, number + 1,
                            "a test waits for a condition, not for time: poll, or say why in "
                            "'tidy: allow-sleep REASON'")


def nothing_unfinished(file):
    for line, text in numbered(file.text):
        match = re.search(UNFINISHED, text)
        if match:
            yield Violation(file.path, line, f"{match[0]}: finish it or open an issue")


def header_has_pragma_once(file):
    if file.path.endswith(".h") and not re.search(r"^#pragma once$", file.text, re.MULTILINE):
        yield Violation(file.path, 1, "a header needs #pragma once")


def markdown_has_one_title(file):
    if not file.path.endswith(".md"):
        return
    prose = re.sub(r"^(```|~~~).*?^\1", "", file.text, flags=re.MULTILINE | re.DOTALL)
    titles = len(re.findall(r"^# \S", prose, re.MULTILINE))
    if titles != 1:
        yield Violation(file.path, 1, f"has {titles} lines '# Title', not one")


def lines_fit(file):
    if not is_cpp(file.path):
        return
    for line, text in numbered(file.text):
        if len(text) > COLUMNS_MAX:
            yield Violation(file.path, line, f"{len(text)} columns, more than {COLUMNS_MAX}")


def skip_says_why(file):
    if not is_cpp(file.path):
        return
    code = without_comments_and_strings(file.text)
    for match in re.finditer(r"GTEST_SKIP\s*\(\s*\)\s*;", code):
        yield Violation(file.path, code[:match.start()].count("\n") + 1,
                        "GTEST_SKIP() << \"what the machine lacks\"")


RULES_OF_ONE_FILE = [
    includes_follow_the_rooms, no_banned_call, no_sleep_in_tests, nothing_unfinished,
    header_has_pragma_once, markdown_has_one_title, lines_fit, skip_says_why,
]


def sources_are_built(files):
    """Every .cc stands in the list of some CMakeLists.txt."""
    built = set()
    for file in files:
        if pathlib.PurePath(file.path).name == "CMakeLists.txt":
            folder = pathlib.PurePath(file.path).parent
            built |= {str(folder / name) for name in re.findall(r"[\w./-]+\.cc\b", file.text)}
    for file in files:
        if file.path.endswith(".cc") and file.path not in built:
            yield Violation(file.path, 1, "is in no CMakeLists.txt: a dead file")


def violations(files):
    for file in files:
        for rule in RULES_OF_ONE_FILE:
            yield from rule(file)
    yield from sources_are_built(files)


# --- The tests ------------------------------------------------------------------------------------


def repository_files():
    """All text files that are, or would be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, check=False)
    if listing.returncode == 0:
        paths = [path for path in listing.stdout.decode().split("\0") if path]
    else:  # An unpacked archive.
        paths = [str(path.relative_to(REPOSITORY)) for path in REPOSITORY.rglob("*")]
        paths = [path for path in paths if not path.startswith(("build", ".git/"))]
    files = []
    for path in sorted(paths):
        try:
            files.append(File(path, (REPOSITORY / path).read_text()))
        except (OSError, UnicodeDecodeError):
            continue  # A directory, a deleted file, or no text.
    return files


class TidyTest(unittest.TestCase):

    def test_repository(self):
        files = repository_files()
        self.assertTrue(any(is_cpp(file.path) for file in files), "found no source at all")
        for file in files:
            if is_cpp(file.path) and file.text.count("\n") > LINES_HINT:
                print(f"hint: {file.path} has more than {LINES_HINT} lines", file=sys.stderr)
        found = sorted(violations(files))
        if found:
            self.fail("\n" + "\n".join(
                f"{each.path}:{each.line}: {each.message}" for each in found))


class RulesTest(unittest.TestCase):

    def caught(self, rule, path, text):
        return [f"{each.line}: {each.message}" for each in rule(File(path, text))]

    def assert_caught(self, rule, path, text):
        self.assertEqual(len(self.caught(rule, path, text)), 1, f"{path}: {text}")

    def assert_passes(self, rule, path, text):
        self.assertEqual(self.caught(rule, path, text), [], f"{path}: {text}")

    def test_rooms(self):
        rule = includes_follow_the_rooms
        for path, header in [
                ("common/base/clock.cc", "common/io/file_io.h"),
                ("common/http/client.cc", "common/io/file_io.h"),
                ("cache/store/s3_store.cc", "cache/tier/tiered_cache.h"),
                ("cache/tier/tier.h", "fuse/vfs/tree.h"),
                ("fuse/adapter/fuse_ops.cc", "cache/store/store.h"),
                ("cli/main.cc", "fuse/vfs/tree.h"),
                ("cli/upgrade.cc", "fuse/keeper/session_state.h"),
                ("fuse/keeper/session.cc", "fuse/options/options.h"),
                ("fuse/daemon/main.cc", "test/support/prng.h"),
                ("common/base/clock.cc", "bench/report.h"),
                ("cli/main.cc", "common/utils/misc.h"),
                ("utils/misc.cc", "common/base/clock.h"),
                ("cache/tier/tier.cc", "tier.h"),
        ]:
            self.assert_caught(rule, path, f'#include "{header}"\n')
        for path, header in [
                ("common/base/clock.cc", "common/base/clock.h"),
                ("cache/fetch/fetcher.cc", "cache/tier/tiered_cache.h"),
                ("fuse/daemon/main.cc", "fuse/adapter/session.h"),
                ("fuse/keeper/main.cc", "fuse/options/options.h"),
                ("test/fuse/vfs/vfs_test.cc", "test/support/prng.h"),
                ("bench/read_bench.cc", "cache/tier/tiered_cache.h"),
                ("cli/main.cc", "absl/strings/str_cat.h"),
        ]:
            self.assert_passes(rule, path, f'#include "{header}"\n')

    def test_foreign_headers(self):
        rule = includes_follow_the_rooms
        for path, header in [
                ("fuse/vfs/vfs.h", "<fuse3/fuse_lowlevel.h>"),
                ("fuse/vfs/vfs.h", "<fuse_lowlevel.h>"),
                ("fuse/daemon/main.cc", "<linux/fuse.h>"),
                ("fuse/daemon/main.cc", '"fuse_lowlevel.h"'),
                ("cache/tier/tier.cc", "<liburing.h>"),
                ("cache/store/s3_store.cc", "<curl/curl.h>"),
                ("common/http/client.cc", "<libxml/parser.h>"),
                ("fuse/vfs/vfs.cc", "<prometheus/registry.h>"),
                ("cache/tier/tier.cc", "<gtest/gtest.h>"),
                ("test/fuse/vfs/vfs_test.cc", "<fuse_lowlevel.h>"),
        ]:
            self.assert_caught(rule, path, f"#include {header}\n")
        for path, header in [
                ("fuse/adapter/fuse_ops.cc", "<fuse_lowlevel.h>"),
                ("test/fuse/adapter/fuse_ops_test.cc", "<fuse_lowlevel.h>"),
                ("common/io/uring_file_io.cc", "<liburing.h>"),
                ("test/common/base/clock_test.cc", '"gtest/gtest.h"'),
        ]:
            self.assert_passes(rule, path, f"#include {header}\n")

    def test_banned_calls(self):
        rule, path = no_banned_call, "cli/main.cc"
        for call in ['system("ls");', "std::system(line);", "FILE* f = popen(command, mode);",
                     "sprintf(text, format);", "strcpy(to, from);", "return rand() % 6;",
                     "n = atoi(text);"]:
            self.assert_caught(rule, path, call)
        for call in ["std::snprintf(text, sizeof(text), format);", 'Log("system(ls)");',
                     "file.system();", "// never system()", "operand(1);", "/*\nrand()\n*/",
                     'R"(rand())";', "char c = '\"'; // rand()"]:
            self.assert_passes(rule, path, call)

    def test_sleeps(self):
        rule = no_sleep_in_tests
        self.assert_caught(rule, "test/a_test.cc", "std::this_thread::sleep_for(kStep);")
        self.assert_caught(rule, "test/a_test.cc", "absl::SleepFor(kStep);")
        self.assert_caught(rule, "test/a_test.py", "time.sleep(1)")
        self.assert_caught(rule, "test/a_test.py", "time.sleep(1)  # tidy: allow-sleep")
        self.assert_passes(rule, "test/a_test.py", "time.sleep(1)  # tidy: allow-sleep mtime's step")
        self.assert_passes(rule, "test/a_test.cc",
                           "// tidy: allow-sleep the proxy itself is slow\nusleep(1);")
        self.assert_passes(rule, "common/base/clock.cc", "absl::SleepFor(duration);")

    def test_unfinished(self):
        self.assert_caught(nothing_unfinished, "cli/main.cc", "// TO" "DO: the rest")
        self.assert_passes(nothing_unfinished, "cli/main.cc", 'mkstemp("/tmp/a.XXXXXX")')

    def test_headers(self):
        self.assert_caught(header_has_pragma_once, "cli/a.h", "#ifndef A\n#define A\n#endif\n")
        self.assert_passes(header_has_pragma_once, "cli/a.h", "// What.\n#pragma once\n")

    def test_titles(self):
        self.assert_caught(markdown_has_one_title, "README.md", "text\n")
        self.assert_caught(markdown_has_one_title, "README.md", "# A\n\n# B\n")
        self.assert_passes(markdown_has_one_title, "README.md", "# A\n```\n# a comment\n```\n## B\n")

    def test_columns(self):
        self.assert_caught(lines_fit, "cli/a.cc", "x" * 101)
        self.assert_passes(lines_fit, "cli/a.cc", "é" * 100)

    def test_skips(self):
        self.assert_caught(skip_says_why, "test/a_test.cc", "GTEST_SKIP();")
        self.assert_passes(skip_says_why, "test/a_test.cc", 'GTEST_SKIP() << "no /dev/fuse";')

    def test_dead_files(self):
        built = File("cli/CMakeLists.txt", "millrace_program(millrace\n  SOURCES main.cc)\n")
        found = list(sources_are_built([built, File("cli/main.cc", ""), File("cli/old.cc", "")]))
        self.assertEqual([each.path for each in found], ["cli/old.cc"])


if __name__ == "__main__":
    unittest.main()
