# SPDX-License-Identifier: Apache-2.0
"""Pictures of strangers: each is read, or refused by name; none takes the process, its memory or its time with it."""

import resource

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hostile import count
from hostile.pictures import bombs, cases, flip
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_kinds import kinds

from data_scripts.files import UnreadableFileError
from data_scripts.limits import MAX_PICTURE_PIXELS
from data_scripts.pictures import decode_picture, picture_size, plain_picture
from data_scripts.preparation.parquet_pictures import read_picture_of_row


pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # of damaged EXIF data, and of sizes that are then refused
SMALL = {name: content for name, content, _ in kinds()}


def read(name: str, content: bytes) -> np.ndarray:
    """What a picture comes to, after making sure that it comes to the same in every way that it is read."""
    image = decode_picture(content, name)
    assert image.mode == "RGB" and image.width * image.height <= MAX_PICTURE_PIXELS
    assert picture_size(content, name) == image.size
    stored, size = plain_picture(content, name)
    again = decode_picture(stored, name)
    assert size == again.size == image.size and np.array_equal(image, again)
    return np.asarray(image)


def test_fuzzed_pictures():
    """Catches an error of Pillow that is none of those expected (of some thirty kinds), which ends a whole preparation or a
    run; and damage that one reader takes otherwise than another."""
    counts = count(
        "pictures",
        ((name, (name, content)) for name, content in cases()),
        lambda case: read(*case),
        refusals=(UnreadableFileError,),
        names=lambda name, case: f"{name}: ",
    )
    assert counts.tried >= 2_400 and not counts.tracebacks, counts.tracebacks[:3]
    assert counts.refused > 500 and counts.accepted > 500  # both kinds of cases are there


def test_bombs_take_little_memory():
    """Catches sizes, texts, profiles, frames and scans that are believed: what is below 3 MB must not come to hundreds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in bombs().items():
        assert len(content) < 3_000_000
        try:
            read(name, content)
        except UnreadableFileError:
            pass
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500, f"{grown:.0f} MB"


@settings(derandomize=True, deadline=None, max_examples=150, database=None)
@given(name=st.sampled_from(sorted(SMALL)), data=st.binary(max_size=40), place=st.floats(0, 1), random=st.randoms())
def test_any_bytes_are_read_or_refused_by_name(name, data, place, random):
    """Catches any exception but the one that names the file, of any bytes in any place."""
    start = int(place * len(SMALL[name]))
    for content in (SMALL[name][:start] + data + SMALL[name][start + len(data) :], data, flip(random, SMALL[name])):
        try:
            read(name, content)
        except UnreadableFileError as error:
            assert error.file == name and error.reason


def test_some_scans_are_usual_and_thousands_are_not():
    """Catches a progressive JPEG that goes through all of its pixels twenty thousand times."""
    with pytest.raises(UnreadableFileError, match="scans.jpg: .*20009 scans"):
        decode_picture(bombs()["scans.jpg"], "scans.jpg")
    decode_picture(SMALL["progressive.jpg"], "progressive.jpg")


@pytest.mark.parametrize(
    ("pictures", "dictionary"), [([bytes(1_000_000)] * 200, False), ([bytes(500_000)] * 300, True)]
)
def test_parquet_that_unpacks_to_a_thousand_times_its_size(tmp_path, pictures, dictionary):
    """Catches a group of rows that is read whole, whatever it comes to: pages of zeros, and one picture for many rows."""
    column = pyarrow.array([{"bytes": content} for content in pictures], pyarrow.struct([("bytes", pyarrow.binary())]))
    path = tmp_path / "bomb.parquet"
    table = pyarrow.table({"image": column})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    assert path.stat().st_size < 100_000
    with pytest.raises(
        UnreadableFileError, match="bomb.parquet: the pictures of row group 0 unpack to more than 64 MiB"
    ):
        read_picture_of_row(path, 5)
    noise = [np.random.default_rng(seed).bytes(100_000) for seed in range(20)]
    column = pyarrow.array([{"bytes": content} for content in noise], pyarrow.struct([("bytes", pyarrow.binary())]))
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), tmp_path / "good.parquet", row_group_size=12)
    assert [read_picture_of_row(tmp_path / "good.parquet", row) for row in range(20)] == noise
