#!/usr/bin/env python3
"""Every test that fuse/SEMANTICS.md names as the proof of a promise exists."""

import pathlib
import re
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY / "fuse" / "SEMANTICS.md"

# How the document names tests, inside backquotes: `NAME`, `Suite.Name`, `binary: Suite.Name`,
# `file.py: test_name`. A suite in small letters is a short name that the document itself explains.
TEST = re.compile(r"(?:(?P<where>\w+(?:\.py)?): )?(?:(?P<suite>\w+)\.)?(?P<name>\w+)")


def named_tests(text):
    """The words in backquotes that can only be a test."""
    for word in re.findall(r"`([^`]+)`", re.sub(r"\s*\n\s*", " ", text)):
        match = TEST.fullmatch(word)
        if match and (match["where"] or re.fullmatch(r"test_\w+", match["name"]) or
                      re.fullmatch(r"[A-Z]\w*[a-z][A-Z]\w*", match["name"])):
            yield word, match


def python_tests():
    """{file: names of its test methods and classes}."""
    return {path.name: set(re.findall(r"^\s*(?:def|class) (\w+)", path.read_text(), re.MULTILINE))
            for path in (REPOSITORY / "test" / "integration").glob("*.py")}


def cpp_tests():
    """{suite: names of its tests}."""
    suites = {}
    for path in (REPOSITORY / "test").rglob("*.cc"):
        for suite, name in re.findall(r"^TEST(?:_F|_P)?\((\w+),\s*(\w+)\)", path.read_text(),
                                      re.MULTILINE):
            suites.setdefault(suite, set()).add(name)
    return suites


class SemanticsTest(unittest.TestCase):
    def test_named_tests_exist(self):
        python, suites = python_tests(), cpp_tests()
        everything = set().union(suites, *suites.values(), *python.values())
        checked = 0
        # Before the first section the document explains the form of the names.
        promises = DOCUMENT.read_text().split("\n## ", 1)[1]
        for word, match in named_tests(promises):
            checked += 1
            with self.subTest(word):
                where, suite, name = match.group("where", "suite", "name")
                known = everything
                if where and where.endswith(".py"):
                    known = python.get(where, set())
                elif suite and suite[0].isupper():
                    known = suites.get(suite, set()).union(
                        *(names for names in python.values() if suite in names))
                self.assertTrue(name in known, f"there is no test {word}")
        self.assertGreater(checked, 50)


if __name__ == "__main__":
    unittest.main()
