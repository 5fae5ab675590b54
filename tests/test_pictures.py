# SPDX-License-Identifier: Apache-2.0
"""One picture is one picture: whoever reads it (training, `recipes.ask`, `load_dataset`, the processor) sees the same pixels."""

import base64
import io
import json
import re
import subprocess
import sys

import datasets
import numpy as np
import picture_kinds
import pytest
from PIL import Image
from scannet_dump import write_scan
from toys import toy_config, toy_geometry, toy_processor

from data_scripts.files import UnreadableFileError
from data_scripts.pictures import decode_picture, open_picture, plain_picture, to_rgb
from data_scripts.preparation.base import Options
from data_scripts.preparation.scans import read_scan
from data_scripts.prepare import main as prepare
from data_scripts.readers.scannet import open_scan
from data_scripts.schema import EMPTY_QUESTION, QA_FEATURES, SCENES_FEATURES
from data_scripts.view import main as view
from modeling_vggt_qwen3 import VggtQwen3ImageProcessorPil
from recipes.ask import read_photo
from recipes.common.scenes import SceneDataset, decode_for
from recipes.feature_store import scene_entries


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged EXIF data
KINDS = {name: (content, expected) for name, content, expected in picture_kinds.kinds()}
REFUSED = dict(picture_kinds.refused())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the pictures; `records`, prepared of them; and `old`, as a version without a common function prepared them."""
    folder = tmp_path_factory.mktemp("pictures")
    records = []
    for name, content in ({name: content for name, (content, _) in KINDS.items()} | REFUSED).items():
        (folder / name).write_bytes(content)
        records.append({"images": [name], "question": "What is it?", "answer": "A wave.", "scene_id": name})
    (folder / "train.json").write_text(json.dumps(records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        arguments = ["--records", str(folder / "train.json"), "--image-root", str(folder)]
        assert prepare(["records", *arguments, "--output", str(folder / "records")]) == 0
        scenes = [
            {"scene_id": name, "images": [{"bytes": content, "path": None}], "frame_ids": ["0"], "geometry": None}
            for name, (content, _) in KINDS.items()
        ]
        qa = EMPTY_QUESTION | {"question_id": "0", "question": "What?", "answers": ["It."], "task": "t"}
        rows = {"scenes": scenes, "qa": [qa | {"scene_id": name} for name in KINDS]}
        card = "---\nconfigs:\n"
        for config, features in (("scenes", SCENES_FEATURES), ("qa", QA_FEATURES)):
            (folder / "old" / config).mkdir(parents=True)
            table = datasets.Dataset.from_list(rows[config], features=features)
            table.to_parquet(folder / "old" / config / "records-train.parquet")
            card += f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/*.parquet\n"
        (folder / "old" / "README.md").write_text(card + "---\n")
        yield folder


def test_all_readers_see_the_same_picture(folder):
    """Catches training that reads a photo lying on its side, transparency as black and 16-bit grey as white, where
    `recipes.ask` and `load_dataset` do not; and a repository, prepared before, that stays so."""
    assert len(KINDS) >= 40
    processor = VggtQwen3ImageProcessorPil()
    loaded = datasets.load_dataset(str(folder / "records"), "scenes", split="train")
    loaded = {row["scene_id"]: row["images"][0] for row in loaded}
    assert loaded.keys() == KINDS.keys()
    differences = []

    def compare(reader: str, name: str, image: Image.Image):
        expected = KINDS[name][1]
        if image.mode != "RGB" or not np.array_equal(np.asarray(image), expected):
            differences.append(f"{name}: {reader}: {image}")

    for name in KINDS:
        compare("recipes.ask", name, read_photo(str(folder / name)))
        assert loaded[name].mode in ("RGB", "L")  # whatever a user does with it is right
        compare("load_dataset", name, loaded[name].convert("RGB"))
        compare("the processor, of load_dataset", name, processor.process_image(loaded[name]))
        compare("the processor, of Image.open", name, processor.process_image(Image.open(folder / name)))
        compare("the processor, of a path", name, processor.process_image(processor.fetch_images(str(folder / name))))
    for repository in ("records", "old"):
        source = SceneDataset(str(folder / repository), "train")
        for number, name in enumerate(source.scene_ids):
            compare(f"{repository}: report", name, source.views(number)[0][0])
            inputs = source.scene_inputs(number)
            compare(f"{repository}: training", name, inputs["images"][0])
            size = KINDS[name][1].shape[1::-1]
            assert inputs["image_sizes"] == source.picture_sizes(number) == [size], name
            assert scene_entries(source, number, 0, None)[0].image_sizes == (size,)
    assert not differences, "\n".join(differences)


def test_plain_pictures_are_stored_as_they_are(folder):
    """Catches a preparation that decodes and encodes what every reader takes alike: slower, and ten times the size."""
    stored = datasets.load_dataset(str(folder / "records"), "scenes", split="train")
    stored = stored.cast_column("images", datasets.List(datasets.Image(decode=False)))
    kept = {row["scene_id"] for row in stored if row["images"][0]["bytes"] == KINDS[row["scene_id"]][0]}
    assert kept >= {"plain.jpg", "grey.jpg", "progressive.jpg", "exif1.jpg", "profile.jpg", "several.mpo"}
    assert kept >= {"plain.png", "grey.png", "plain.webp", "lossy.webp"}
    assert not kept & {
        name for name in KINDS if re.search(r"exif[2-8]|alpha|key|cmyk|palette|bits|16_?|gif|tiff", name)
    } - {"colour16.png"}


def test_what_is_not_read_is_refused_by_name(folder, capsys):
    """Catches an `Image.open` that reads any format (EPS, by running Ghostscript), and pixels without a white that become
    some picture or other."""
    arguments = [
        "--records",
        str(folder / "train.json"),
        "--image-root",
        str(folder),
        "--output",
        str(folder / "again"),
    ]
    assert prepare(["records", *arguments]) == 0
    said = capsys.readouterr().out
    assert f"{len(REFUSED)} left out" in said
    for name, content in REFUSED.items():
        assert f"left out: scene {name}: {name}: not a readable picture" in said
        with pytest.raises(UnreadableFileError, match=f"^{name}: not a readable picture") as caught:
            plain_picture(content, name)
        assert "tiff" in name or "none of JPEG, PNG, WEBP, GIF, BMP, TIFF" in str(caught.value)
        with pytest.raises(ValueError, match=f"Cannot read the photo .*{name}: not a readable picture"):
            read_photo(str(folder / name))
    with pytest.raises(Exception, match="cannot identify"):
        VggtQwen3ImageProcessorPil()(str(folder / "postscript.jpg"))
    with pytest.raises(ValueError, match="Cannot read the photo .*none.jpg: missing"):
        read_photo(str(folder / "none.jpg"))


def test_a_cut_picture_is_an_error_or_whole(folder):
    """Catches half a picture, the rest of it grey or black, that passes for a whole one."""
    whole = refused = 0
    for name, (content, expected) in KINDS.items():
        for share in np.linspace(0, 1, 12, endpoint=False):
            cut = content[: int(share * len(content))]
            try:
                image = decode_picture(cut, name)
            except UnreadableFileError:
                refused += 1
                with pytest.raises(UnreadableFileError):
                    plain_picture(cut, name)
            else:
                whole += 1  # what was cut off comes after the pixels, or tells how to turn them
                upright = np.asarray(image)
                assert any(np.array_equal(turn(upright), expected) for turn in picture_kinds.UPRIGHT.values()), (
                    f"{name}: {share}"
                )
    assert refused > 0.8 * (whole + refused), (whole, refused)


def test_size_is_bounded_before_pixels_are_decoded(monkeypatch):
    """Catches a header of a few bytes that takes gigabytes: 8,001 x 8,000 pixels are too many, 8,000 x 8,000 are not."""
    header = picture_kinds.png(np.zeros((1, 1, 1)), 8, 0)
    monkeypatch.setattr(Image.core, "zip_decoder", None)  # what would decode
    for width, height in ((8001, 8000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        bomb = picture_kinds.chunk(b"IHDR", size + b"\x08\0\0\0\0")
        with pytest.raises(
            UnreadableFileError, match=r"bomb.png: .*(8001 x 8000 pixels, more than 64 MP|exceeds limit)"
        ):
            decode_picture(header[:8] + bomb + header[33:], "bomb.png")
    allowed = picture_kinds.chunk(b"IHDR", (8000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0")
    with open_picture(header[:8] + allowed + header[33:], "large.png") as picture:
        assert picture.size == (8000, 8000)


def test_ordinary_pictures_are_not_copied():
    """Catches a conversion of what is RGB already, which takes another picture's time and memory in every step."""
    for name in ("plain.jpg", "exif1.jpg", "plain.png", "plain.webp", "turned6.tiff"):
        with open_picture(KINDS[name][0], name) as picture:
            assert to_rgb(picture) is picture
    turned = decode_picture(KINDS["exif6.jpg"][0], "exif6.jpg")
    assert to_rgb(turned) is turned  # and not turned twice


def test_preparation_does_not_load_torch():
    """Catches processes of a preparation that take seconds and hundreds of megabytes to import what they do not use."""
    code = "import sys, data_scripts.prepare, data_scripts.pictures; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_large_jpeg_that_is_turned_is_decoded_smaller():
    """Catches a reduced decoding whose size is reckoned of the picture as it lies: too small, or not at all."""
    columns, rows = np.meshgrid(np.linspace(0, 1, 224), np.linspace(0, 1, 112))
    array = (np.stack([columns, rows, columns * rows], -1) * 255).astype(np.uint8)
    content = picture_kinds.save(Image.fromarray(array), "JPEG", quality=95, exif=picture_kinds.exif(6))
    processor = VggtQwen3ImageProcessorPil(image_size=56)  # upright it is 112 x 224, which becomes 56 x 112
    with open_picture(content, "turned.jpg") as picture:
        decode_for(picture, processor)
        reduced = to_rgb(picture)
    assert reduced.size == (56, 112)
    whole = decode_picture(content, "turned.jpg").resize((56, 112), Image.Resampling.BOX)
    assert np.abs(np.asarray(whole, dtype=int) - np.asarray(reduced)).max() <= 4


def test_page_of_a_scene_shows_the_same(folder, tmp_path):
    """Catches a page that shows stored bytes which a browser takes for another picture."""
    for name in ("cmyk_exif8.jpg", "grey16_key.png", "alpha.png", "lzw.tiff"):
        page = tmp_path / "page.html"
        assert view([str(folder / "old"), "--scene", name, "--output", str(page)]) == 0
        (encoded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text())
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), KINDS[name][1])


def test_frame_that_is_turned_without_its_camera(tmp_path):
    """Catches a frame that EXIF data turn upright, while pose and intrinsics are those of the picture as it lies."""
    folder = write_scan(tmp_path, "scene0000_00", frames=(0,))
    path = folder / "color" / "0.jpg"
    size = Image.open(path).size
    Image.open(path).save(path, exif=picture_kinds.exif(3))
    with pytest.raises(UnreadableFileError, match="scene0000_00: frame 0: its EXIF data turn it, but not its camera"):
        read_scan(open_scan(folder), Options())
    (view,), _ = read_scan(open_scan(folder), Options(geometry="none"))
    assert Image.open(io.BytesIO(view.image)).format == "PNG" and view.size == size
    for image in (Image.new("L", size, 100), Image.new("CMYK", size)):  # stored as every reader takes it
        image.save(path)
        (view,), _ = read_scan(open_scan(folder), Options())
        assert Image.open(io.BytesIO(view.image)).mode == ("L" if image.mode == "L" else "RGB")


def test_cameras_are_of_the_upright_picture():
    """Catches intrinsics, in pixels of the upright picture, that are scaled by the sides of the one that lies."""
    processor = toy_processor(toy_config("mlp"))
    lying, geometry = Image.open(io.BytesIO(KINDS["exif6.jpg"][0])), toy_geometry(1)
    upright = decode_picture(KINDS["exif6.jpg"][0], "exif6.jpg")
    assert lying.size == upright.size[::-1]
    inputs = [processor(images=[[image]], text=["Hi"], geometry=[geometry]) for image in (lying, upright)]
    assert np.array_equal(inputs[0]["pixel_values"], inputs[1]["pixel_values"])
    assert np.array_equal(inputs[0]["intrinsics"], inputs[1]["intrinsics"])


def test_conversion_travels_with_the_processor(tmp_path):
    """Catches a checkpoint whose image processor needs a file that it did not bring."""
    VggtQwen3ImageProcessorPil().save_pretrained(tmp_path)
    assert (tmp_path / "pictures_vggt_qwen3.py").is_file()


def test_images_of_every_mode():
    """Catches a mode that Pillow has and no file brings: premultiplied alpha, a palette with alpha, other byte orders."""
    processor, array = VggtQwen3ImageProcessorPil(), picture_kinds.smooth(3)
    image = Image.fromarray(array)
    for mode in ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LA"):
        assert processor.process_image(image.convert(mode)).mode == "RGB", mode
    for mode in ("LAB", "PA", "RGBa"):
        assert processor.process_image(Image.new(mode, image.size)).mode == "RGB", mode
    wide = picture_kinds.smooth(1, 65535, np.uint16)[..., 0]
    expected = np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, -1)
    for mode, order in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "<i4")):
        converted = Image.frombytes(mode, image.size, wide.astype(order).tobytes())
        assert np.array_equal(processor.process_image(converted), expected), mode
    with pytest.raises(ValueError, match="no white"):
        processor.process_image(Image.new("F", (4, 4)))
