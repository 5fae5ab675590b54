# SPDX-License-Identifier: Apache-2.0
"""Small copies of the official releases that stage 1 trains on, as their owners lay them out: JSON, and Parquet of the Hub."""

import io
import json
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image


# Pictures of LLaVA-1.5's mix, those of COCO also in ShareGPT4V; what its owners cannot give away is often absent.
# Of these 45, and of DocVQA's pages the first, are in the hundredth that --val-share 0.01 takes.
COCO = [f"coco/train2017/{number:012d}.jpg" for number in (9, 25, 45, 30, 34, 36)]
OTHERS = ["gqa/images/2354786.jpg", "textvqa/train_images/011e7e629fb9ae7b.jpg", "vg/VG_100K_2/2404112.jpg"]
OCR_VQA = ["ocr_vqa/images/1419702455.jpg", "ocr_vqa/images/689852649.jpg"]
SAM = ["sam/images/sa_545504.jpg", "sam/images/sa_1224.jpg", "sam/images/sa_7.jpg"]
CAPTIONED = ["wikiart/images/a_painter_a-house.jpg", "web-landmark/images/landmark_1.jpg"]


def encoded(name: str, form: str = "JPEG") -> bytes:
    """A picture that is like no other, of noise that its name decides."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize((45, 35)).save(buffer, form)
    return buffer.getvalue()


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.name, "PNG" if path.suffix == ".png" else "JPEG"))


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def write_llava(folder: Path, absent: bool = False) -> Path:
    """`llava_v1_5_mix665k.json` and its pictures in `images`, with records of text alone; `absent`: without OCR-VQA's."""
    records = []
    for number, image in enumerate([*COCO, *OTHERS, *OCR_VQA]):
        if not (absent and image in OCR_VQA):
            write_picture(folder / "images" / image)
        conversation = turns("<image>\nWhat is it?\nAnswer the question using a single word or phrase.", "Noise")
        conversation += turns(f"Which number?\n{number}", f"It is {number}.")
        records.append({"id": Path(image).stem, "image": image, "conversations": conversation})
    records.append(records[0] | {"conversations": turns("Describe it.\n<image>", "Noise of all colours.")})
    records.append({"id": "wgByO4Y_0", "model": "", "conversations": turns("Hello", "Hi")})
    return write_json(folder / "llava_v1_5_mix665k.json", records)


def write_sharegpt4v(folder: Path, absent: bool = False) -> Path:
    """`sharegpt4v_instruct_gpt4-vision_cap100k.json` and its pictures in `images`; `absent`: without SAM's."""
    records = []
    for image in [*COCO[:3], *SAM, *CAPTIONED]:
        if not (absent and image in SAM):
            write_picture(folder / "images" / image)
        caption = f"In the picture {Path(image).stem} there is noise of all colours."
        conversation = turns("<image>\nWhat do you see happening in this image?", caption)
        records.append({"id": Path(image).stem, "image": image, "conversations": conversation})
    return write_json(folder / "sharegpt4v_instruct_gpt4-vision_cap100k.json", records)


def docvqa_rows(split: str) -> list[dict]:
    """Two pages, the first of which has two questions."""
    first = {"train": 337, "val": 49153, "test": 57344}[split]
    rows = []
    for number, page in enumerate((1, 1, 2)):
        rows.append(
            {
                "questionId": first + number,
                "question": f"What is the {('date', 'sum', 'name')[number]} ?",
                "question_types": ["handwritten", "form"],
                "image": f"documents/{split}bl0027_{page}.png",
                "docId": 279 + page,
                "ucsf_document_id": f"{split}bl0027",
                "ucsf_document_page_no": str(page),
                "answers": [f"1/{number}/93", f"1.{number}.93"],
                "data_split": split,
            }
        )
    return rows


def write_docvqa(folder: Path) -> list[Path]:
    """`spdocvqa_qas` and `spdocvqa_images` of the RRC portal."""
    files = []
    for split, name in (("train", "train_v1.0_withQT.json"), ("val", "val_v1.0_withQT.json")):
        rows = docvqa_rows(split)
        for row in rows:
            write_picture(folder / "spdocvqa_images" / Path(row["image"]).name)
        content = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": split, "data": rows}
        files.append(write_json(folder / "spdocvqa_qas" / name, content))
    return files


def write_chartqa(folder: Path, splits=("train", "val")) -> Path:
    """The folder `ChartQA Dataset` of ChartQA's own archive."""
    root = folder / "ChartQA Dataset"
    for split in splits:
        for kind, imgname in (("human", f"{split}41699051005347.png"), ("augmented", f"two_col_{split}20.png")):
            write_picture(root / split / "png" / imgname)
            rows = [
                {"imgname": imgname, "query": "How many bars are there?", "label": "3"},
                {"imgname": imgname, "query": "Is the first bar the longest?", "label": "Yes"},
            ]
            write_json(root / split / f"{split}_{kind}.json", rows)
    return root


DOCVQA_FEATURES = datasets.Features(
    {
        "questionId": datasets.Value("string"),
        "question": datasets.Value("string"),
        "question_types": datasets.List(datasets.Value("string")),
        "image": datasets.Image(),
        "docId": datasets.Value("int64"),
        "ucsf_document_id": datasets.Value("string"),
        "ucsf_document_page_no": datasets.Value("string"),
        "answers": datasets.List(datasets.Value("string")),
        "data_split": datasets.Value("string"),
    }
)
CHARTQA_FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "query": datasets.Value("string"),
        "label": datasets.List(datasets.Value("string")),
        "human_or_machine": datasets.ClassLabel(names=["human", "machine"]),
    }
)


def write_table(path: Path, rows: list[dict], features: datasets.Features) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Row groups of two: questions about a picture are in several.
    datasets.Dataset.from_list(rows, features=features).to_parquet(path, batch_size=2)
    return path


def write_docvqa_tables(folder: Path, splits=("train", "validation", "test")) -> Path:
    """`lmms-lab/DocVQA` as `hf download` leaves it; returns the folder of its config `DocVQA`."""
    write_card(folder / "DocVQA", "apache-2.0")
    for split in splits:
        rows = docvqa_rows({"validation": "val"}.get(split, split))
        for row in rows:
            row["questionId"] = str(row["questionId"])
            row["image"] = {"bytes": encoded(Path(row["image"]).name, "PNG"), "path": None}
            row["answers"] = None if split == "test" else row["answers"]
        write_table(folder / "DocVQA" / "DocVQA" / f"{split}-00000-of-00001.parquet", rows, DOCVQA_FEATURES)
    return folder / "DocVQA" / "DocVQA"


def write_chartqa_tables(folder: Path, splits=("train", "val", "test")) -> Path:
    """`HuggingFaceM4/ChartQA` as `hf download` leaves it; returns its folder `data`."""
    write_card(folder / "ChartQA", "gpl-3.0")
    for split in splits:
        rows = []
        for number, name in enumerate(("a", "a", "b", "a")):
            picture = {"bytes": encoded(f"{split}{name}.png", "PNG"), "path": None}
            rows.append(
                {"image": picture, "query": f"Question {number}?", "label": [str(number)], "human_or_machine": 0}
            )
        shards = ("00000-of-00002-49492f364babfa44", "00001-of-00002-7302bae5e425bbc7")
        for shard, some in zip(shards, (rows[:2], rows[2:])):
            write_table(folder / "ChartQA" / "data" / f"{split}-{shard}.parquet", some, CHARTQA_FEATURES)
    return folder / "ChartQA" / "data"


def write_card(folder: Path, licence: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
