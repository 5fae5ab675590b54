# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not finite: cameras are refused before training, losses and gradients end it with whole weights."""

import json

import numpy as np
import pytest
from datasets import Dataset
from toys import toy_geometry, toy_model, toy_processor, toy_views, write_toy_repo

from recipes.training.data import SceneDataset


def write_camera(repo, scene, field, place, value, split="train"):
    """Puts `value` at `place` of a field of a prepared scene's cameras; a column that holds it, as strangers may have."""
    path = repo / "scenes" / f"{split}-00000-of-00001.parquet"
    table = Dataset.from_parquet(str(path), cache_dir=str(repo / "cache"))
    rows = [dict(row) for row in table.with_format(None)]
    array = np.asarray(rows[scene]["geometry"][field], dtype=np.float64)
    array[place] = value
    rows[scene]["geometry"][field] = array.tolist()
    Dataset.from_list(rows, features=table.features).to_parquet(path)
    return repo


# Of view 1. The second is finite in float64 and infinite in float32, which it is computed with.
BAD_CAMERAS = [
    ("R", (1, 0, 0), np.nan),
    ("t", (1, 0), 1e39),
    ("t", (1, 2), -np.inf),
    ("t", (1, 2), 1e30),
    ("K", (1, 0, 2), np.nan),
    ("K", (1, 1, 1), 0.0),
    ("depth_hist", (1, 3), np.inf),
]


@pytest.mark.parametrize(("field", "place", "value"), BAD_CAMERAS)
def test_the_processor_refuses_cameras_that_are_not_finite(field, place, value):
    """
    Catches a check before the cast to float32, or none: one such camera made a model of numbers that are none, with exit
    code 0 and a loss of 0.000. A focal length of 0 makes rays infinite; squares of 1e30 leave float32.
    """
    processor = toy_processor(toy_model().config)
    geometry = {key: array.astype(np.float64) for key, array in toy_geometry(2).items()}
    geometry[field][place] = value
    with pytest.raises(ValueError, match=rf"geometry of scene 1, view 1: {field} h(olds|as the focal length)"):
        processor(images=[toy_views(2)] * 2, text=["What?"] * 2, geometry=[toy_geometry(2), geometry])
    processor(images=[toy_views(2)], text=["What?"], geometry=[toy_geometry(2)])


@pytest.mark.parametrize(("field", "place", "value"), BAD_CAMERAS)
def test_a_data_set_refuses_them_before_training(field, place, value, tmp_path):
    """Catches a bad camera that is found by the step that reads it, after an hour, or not at all."""
    repo = write_toy_repo(tmp_path / f"toy_{field}_{place}_{value}", {"train": 3})
    write_camera(repo, 2, field, place, value)
    message = rf"toy_.*, split train, scene scene0002_00, view 1: {field} h(olds|as the focal length).*Prepare the dataset"
    with pytest.raises(ValueError, match=message):
        SceneDataset(str(repo), "train", num_views=3)
    # The view is not in use: nothing reads its camera.
    assert SceneDataset(str(repo), "train", num_views=1).scene_inputs(2)["geometry"]["t"].shape == (1, 3)
