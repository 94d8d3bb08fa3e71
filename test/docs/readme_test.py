#!/usr/bin/env python3
"""README.md tells the truth: its command reference is the programs' own --help."""

import pathlib
import re
import subprocess
import sys
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(sys.argv.pop(1)) if len(sys.argv) > 1 else REPOSITORY / "build" / "bin"
REFERENCE = re.compile(r"^### (millrace(?: \w+(?: \w+)?|-\w+))\n\n```text\n(.*?)\n```$",
                       re.MULTILINE | re.DOTALL)


class ReadmeTest(unittest.TestCase):
    def test_command_reference_is_the_help_text(self):
        sections = REFERENCE.findall((REPOSITORY / "README.md").read_text())
        self.assertGreaterEqual(len(sections), 5)
        for command, text in sections:
            with self.subTest(command=command):
                program, *words = command.split()
                help_text = subprocess.run(
                    [PROGRAMS / program, *words, "--help"],
                    capture_output=True, text=True, check=True).stdout.strip()
                self.assertEqual(text, help_text,
                                 f"paste the output of `{command} --help` into README.md")

    def test_map_names_folders_that_exist(self):
        text = (REPOSITORY / "README.md").read_text()
        tree = text.split("## Map", 1)[1].split("[ARCHITECTURE.md]", 1)[0]
        folders = re.findall(r"^    (\w+/)", tree, re.MULTILINE)
        self.assertGreaterEqual(len(folders), 6)
        for folder in folders:
            self.assertTrue((REPOSITORY / folder).is_dir(), folder)


if __name__ == "__main__":
    unittest.main()
