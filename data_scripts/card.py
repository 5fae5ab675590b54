# SPDX-License-Identifier: Apache-2.0
"""The dataset card of a prepared repo, a pure function of what was prepared."""

from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from .licences import Origin, card_metadata


GEOMETRY = """\
`geometry` of a scene with V views, null where there is none:
- `R` `[V, 3, 3]`, `t` `[V, 3]`: world-to-camera, metres; the camera has OpenCV axes (x right, y down, z forward), the
  world is the dataset's aligned one, z up (for ScanNet: `axisAlignment` applied to the dumped camera-to-world pose,
  then inverted; for ARKitScenes: the world of the trajectory, the camera that of the picture turned upright);
- `K` `[V, 3, 3]`: intrinsics in pixels of the stored image;
- `depth_hist` `[V, 16]`: share of the valid depth pixels in each of 16 equal bins over 0-8 m, anything beyond in the
  last; all zero if a view has no valid depth pixel."""

# Stands for the repo's name until it has one.
THIS_REPO = "<this repo>"
# Follows the data's own title.
PREPARED = ", prepared for VGGT-Qwen3"

TEMPLATE = """\
---
{metadata}
---

# {title}

Two configurations: `scenes` holds the views of each scene once, `qa` (the default) the questions, which name their
scene by `scene_id`.

```python
from datasets import load_dataset

questions = load_dataset("{repo}")
scenes = load_dataset("{repo}", "scenes")
```

| split | scenes | views | questions |
|---|---:|---:|---:|
{counts}

{left_out}

{notes}

## Source
{source}

Prepared with
```bash
{command}
```
Fingerprint of the inputs: `{fingerprint}`.

## Licence
{licence}

## Fields
`scenes`: `scene_id`, `images` (the views, the most central one first; {stored}), `frame_ids` (their frame
numbers or times in the source), `geometry`.

{geometry}

`qa`: `scene_id`, `question_id`, `question`, `situation`, `answers`, `task`, `object_ids`, `object_names`, `position`,
`rotation`, `position_frame`, `action`, `action_world`; what a question does not have is null, or empty for the lists of answers and objects. {about}
"""


def dataset_card(
    *,
    origin: Origin,
    about: str,
    command: str,
    counts: dict[str, dict[str, int]],
    num_left_out: int,
    notes: list[str],
    image_size: int | None,
    data_files: dict[str, dict[str, str]],
    infos: dict[str, DatasetInfo],
    fingerprint: str,
) -> str:
    """Writes the README.md of a prepared repo.

    Args:
        origin: what the data are and which licences they have.
        about: what the builder says of its fields.
        command: the shell command that made the repo.
        counts: split to the number of its `scenes`, `views` and `questions`.
        num_left_out: how many scenes are absent or could not be used.
        notes: what else is to be known of these data, one line each.
        image_size: the longer side that larger pictures were brought down to, or None.
        data_files: configuration to split to the path, or the glob, of its Parquet files in the repo.
        infos: configuration to its features, splits and sizes.
        fingerprint: hexadecimal digest of the inputs. It becomes the configurations' version: `load_dataset` caches a
            local repo by the name of its folder and that version alone, and would give another repo of that name.

    Returns:
        The card's text: YAML metadata from which `load_dataset` knows the configurations, then Markdown.
    """
    metadata = DatasetCardData(
        **card_metadata(origin.licences),
        pretty_name=origin.title + PREPARED,
        task_categories=["visual-question-answering"],
        configs=[
            {
                "config_name": name,
                "version": f"1.0.{int(fingerprint[:8], 16)}",
                "data_files": [{"split": split, "path": path} for split, path in files.items()],
                **({"default": True} if name == "qa" else {}),
            }
            for name, files in data_files.items()
        ],
    )
    DatasetInfosDict(infos).to_dataset_card_data(metadata)
    left_out = (
        f"{num_left_out} scenes and their questions were left out because a raw file is absent or could not be used."
    )
    return TEMPLATE.format(
        metadata=metadata.to_yaml(),
        title=origin.title + PREPARED,
        repo=THIS_REPO,
        counts="\n".join(
            f"| {split} | {number['scenes']} | {number['views']} | {number['questions']} |"
            for split, number in counts.items()
        ),
        left_out=left_out if num_left_out else "No scene was left out.",
        notes="\n".join(f"- {note}" for note in notes),
        stored="as in the source" if image_size is None else f"larger ones made {image_size} pixels long",
        fingerprint=fingerprint,
        source=origin.source,
        command=command,
        licence=origin.licence,
        geometry=GEOMETRY,
        about=about,
    )


__all__ = ["PREPARED", "THIS_REPO", "dataset_card"]
