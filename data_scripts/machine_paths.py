# SPDX-License-Identifier: Apache-2.0
"""Folders of the machine that something was made on, in what others will read: found in all spellings, and cut off."""

import re
from collections.abc import Iterable
from pathlib import Path


# Between two names, in the spellings of Linux, Windows, JSON and addresses.
SEPARATOR = r"(?:\\*/|\\+|%2[Ff]|%5[Cc])"
NAME = r"(?:(?!%2[Ff]|%5[Cc])[^\\/\s'\"])+"
BEFORE = r"(?:^|(?<=[\s=,;:'\"`\[({|@]))"
# What a path begins with, and how many folders below it say that it is one: 1/2, and/or and https://host/a are none.
ROOTS = (
    (rf"{BEFORE}\\*/(?![\\/\s])", "+"),  # /a/b/c, JSON's \/a\/b
    (r"file:(?:\\*/){1,3}(?![\\/\s])", "*"),  # file:///a/b
    (rf"{BEFORE}~[\w.-]*\\*/", "*"),  # ~/a, ~user/a
    (rf"{BEFORE}(?:\$\w+|\$\{{\w+\}}|%\w+%)(?:\\*/|\\+)", "*"),  # $HOME/a, ${{HOME}}/a, %USERPROFILE%\a
    (r"(?<!\w)[A-Za-z](?::|%3[Aa])(?:\\+|\\*/(?!/)|%5[Cc]|%2[Ff])(?!\s)", "*"),  # C:\a, C:/a
    (r"(?:^|(?<=[\s=,;'\"`\[({|@]))(?:\\{2,4}|//)(?![\\/\s])", "+"),  # \\server\share\a
    (r"(?<![\w%])(?:file%3[Aa])?(?:%2[Ff])+", "+"),  # %2Fa%2Fb
)
FOLDERS = re.compile("|".join(f"{root}(?:{NAME}{SEPARATOR}){many}(?={NAME})" for root, many in ROOTS))
# A text that is a path and nothing else, or `--argument=path`: the names in it may hold blanks.
BLANK_NAME = r"(?:(?!%2[Ff]|%5[Cc])[^\\/\n'\":*?<>|])+"
WHOLE = re.compile(
    rf"(--?[\w-]+=)?(?:{'|'.join(root for root, _ in ROOTS)})(?:{BLANK_NAME}{SEPARATOR})+({BLANK_NAME})"
)


def without_folders(value):
    """`value`, of plain lists, dicts and strings, with paths of a machine in its strings cut down to their last names."""
    if isinstance(value, str):
        whole = WHOLE.fullmatch(value)
        return (whole[1] or "") + whole[2] if whole else FOLDERS.sub("", value)
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    return value


def find_folder(content: bytes, folders: Iterable[Path]) -> str | None:
    """Where a text holds one of `folders` of this machine, however it is spelled, as "line 3"; None if it does not."""
    for folder in folders:
        if len(folder.parts) < 2:
            continue  # the root, which is in every path
        spelled = "".join(SEPARATOR + re.escape(name) for name in folder.parts[1:])
        match = re.search(rf"(?<![\w.]){spelled}(?![\w-])".encode(), content)
        if match is not None:
            return f"line {content.count(10, 0, match.start()) + 1}"
    return None


__all__ = ["find_folder", "without_folders"]
