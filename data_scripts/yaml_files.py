# SPDX-License-Identifier: Apache-2.0
"""Settings in YAML files, read within bounds: what cannot be meant is refused in one line that names file and line."""

from pathlib import Path

import yaml


MAX_SIZE = 1 << 17  # bytes; reading takes seconds from there on
MAX_VALUES = 10_000  # with aliases written out: ten lines of ten aliases each would be ten billion


def read_yaml(path: Path):
    """
    What a YAML file holds: plain dicts, lists, strings, numbers, None.

    Raises:
        ValueError: naming the file, and where there is one the line: it cannot be read, is no YAML, is larger than a file
            of settings, has a key twice, or holds characters that no setting can have.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_SIZE + 1)
        if len(content) > MAX_SIZE:
            raise ValueError(f"it is larger than {MAX_SIZE:,} bytes")
        loader = yaml.SafeLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values, aliases written out")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{path}: cannot be read: it is nested too deeply.") from None
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())[:500]}") from error


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Values below a node, each alias counted as what it stands for; `counts` has those of the nodes that were seen."""
    if id(node) in counts:
        count = counts[id(node)]
        if count is None:
            raise ValueError(f"line {node.start_mark.line + 1} refers to itself")
        return count
    counts[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and names.count(key.value) > 1:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} is there more than once")
        count = 1 + sum(_count(part, counts) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        count = 1 + sum(_count(part, counts) for part in node.value)
    else:
        count = 1
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
            raise ValueError(f"line {node.start_mark.line + 1} holds a character that is none (NUL or half of a pair)")
    counts[id(node)] = count
    return count


__all__ = ["read_yaml"]
