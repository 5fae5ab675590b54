# SPDX-License-Identifier: Apache-2.0
"""Files of settings that are no good: YAML that is none, that means something else, or that fills a memory."""

import random
from collections.abc import Iterator


# In the place of any value.
ODD = (
    "x", "''", "-1", "0", "1e400", ".nan", ".inf", "true", "null", "[]", "[[1, 2], [3]]", "{}", "{a: {b: c}}", "[null]", "1_000", "0o17",
    "1:30", "2024-13-45", "2024-01-01", "!!binary aGVsbG8=", "!!set {a, b}", "!!python/object/apply:os.getpid []", "&a [*a]",
    '"a\\0b"', '"\\ud800"', "9" * 5000, "9" * 400, "-" * 5000, "'--push_to_hub'", "[a, --hub_model_id, b]", "-x", "../" * 500 + "x",
    "@/etc/hostname", "'%s%n'", "$(touch /tmp/x)", '"\\n\\n"',
)  # fmt: skip


def texts() -> dict[str, bytes]:
    """Whole files."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    bomb = "\n".join(lines)
    return {
        "empty": b"",
        "a tab": b"model_name_or_path:\n\tx\n",
        "a list": b"- a\n",
        "a word": b"a",
        "two documents": b"a: 1\n---\nb: 2\n",
        "a key twice": b"seed: 1\nlearning_rate: 1.0e-5\nseed: 2\n",
        "a key twice, in a mapping": b"loss_heads: {language: 1, language: 2}\n",
        "a NUL": b"seed: 1\0\n",
        "not UTF-8": b"seed: \xff\n",
        "UTF-16": "seed: 1\n".encode("utf-16"),
        "nested deeply": b"seed: " + b"[" * 5_000,
        "mappings nested deeply": b"seed: " + b"{a: " * 5_000,
        "indented deeply": b"".join(b" " * depth + b"a:\n" for depth in range(400)),
        "aliases of aliases": bomb.encode(),
        "aliases of aliases, in a setting": f"{bomb}\nloss_heads: {{a: *i}}\n".encode(),
        "merged aliases": b"a: &a {x: 1}\nb: &b {<<: [*a, *a, *a]}\nc: {<<: [*b, *b]}\n",
        "an alias of nothing": b"seed: *x\n",
        "an alias of itself": b"&a a: *a\n",
        "two megabytes": b"seed: 1 # " + b"x" * (2 << 20),
        "keys of other types": b"1: a\nnull: b\n[c]: d\n{e: f}: g\n",
        "twelve thousand values": b"dataset_paths: [" + b"a," * 12_000 + b"]\n",
        "a key of 100,000 letters": b"a" * 100_000 + b": 1\n",
        "a question mark": b"? [a, b]\n: c\n",
        "a directive": b"%YAML 9.9\n---\nseed: 1\n",
        "a tag of Python": b"seed: !!python/name:os.system\n",
        "an object of Python": b"seed: !!python/object/apply:os.system ['exit 1']\n",
    }


def settings(base: dict[str, str], seed: int, values: int) -> Iterator[tuple[str, bytes]]:
    """
    Contents of a YAML file, of which one thing is hostile.

    Args:
        base: settings that would do, as they stand in the file.
        seed: of the random choices.
        values: how many values are replaced.
    """
    rng = random.Random(seed)

    def written(changes: dict[str, str]) -> bytes:
        return "".join(f"{key}: {value}\n" for key, value in (base | changes).items()).encode()

    for what, content in texts().items():
        yield what, content
    for what in ("a key twice", "aliases of aliases, in a setting", "keys of other types", "an object of Python"):
        yield f"{what}, after good settings", written({}) + texts()[what]
    for _ in range(values):
        key, odd = rng.choice(list(base)), rng.choice(ODD)
        yield f"{key}: {odd[:40]}", written({key: odd})
    good = written({"seed": "1"})
    for _ in range(values // 4):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[rng.randrange(len(good))] = rng.randrange(256)
        yield "three bytes changed", bytes(damaged)


__all__ = ["settings"]
