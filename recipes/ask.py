# SPDX-License-Identifier: Apache-2.0
"""Asks a model about photos of one room. The first photo is the reference view.

python -m recipes.ask --model DIR photo1.jpg photo2.jpg ... "question" [--save-scene scene.glb] [--save-views views.png]
python -m recipes.ask --model DIR photo1.jpg ... "Put an anchor on the bed." --action place_anchor --cameras cameras.json \
    [--save-plan plan.png]

With --action the answer is that action as JSON, decoded under its grammar, in the frame of view 0 (docs/actions.md).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_scripts.files import UnreadableFileError, read_bytes
from data_scripts.pictures import decode_picture
from modeling_vggt_qwen3 import ACTION_SCHEMAS, VggtQwen3Processor
from recipes.asking.scene_export import check_heads, check_outputs, photo_masks, save_scene, save_views
from recipes.common.loading import load_model, loading
from recipes.evaluation.action_page import save_action_plan
from recipes.evaluation.plan import check_plan_path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub repository")
    parser.add_argument("photos", nargs="+", help="photos of the room")
    parser.add_argument("question")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--image-mode", choices=("crop", "pad"), help="pad takes photos of different shapes; default the checkpoint's"
    )
    parser.add_argument("--save-scene", type=Path, metavar="FILE.glb", help="write the predicted points and cameras")
    parser.add_argument("--save-views", type=Path, metavar="FILE.png", help="write the predicted depth of each photo")
    parser.add_argument(
        "--confidence-percentile", type=float, default=50.0, help="percent of the points, the least sure, to leave out"
    )
    parser.add_argument("--action", choices=sorted(ACTION_SCHEMAS), help="what to answer with")
    parser.add_argument(
        "--cameras",
        type=Path,
        metavar="FILE.json",
        help="the photos' cameras, in their order: R, t (world to camera, OpenCV axes, metres), K (pixels) and depth_hist "
        "(docs/data.md); without them lengths are relative",
    )
    parser.add_argument("--save-plan", type=Path, metavar="FILE.png", help="draw the action's boxes from above")
    arguments = parser.parse_args()
    if arguments.save_plan and not arguments.action:
        parser.error("--save-plan draws an action: with --action")
    try:
        print(ask(arguments))
    except (OSError, ValueError, torch.OutOfMemoryError) as error:
        sys.exit(f"recipes.ask: {error}")


def read_photo(path: str) -> Image.Image:
    """A photo, RGB and upright. Raises ValueError naming a file that is missing or is no picture."""
    try:
        return decode_picture(read_bytes(Path(path)), path)
    except UnreadableFileError as error:
        raise ValueError(f"Cannot read the photo {error}") from None


def check_question(question: str):
    """Raises ValueError for a question whose bytes on the command line were no text."""
    try:
        question.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The question is not UTF-8 text: {question[:80]!r}.") from None


def read_cameras(path: Path) -> dict[str, np.ndarray]:
    """The cameras of a JSON file, as arrays. Raises ValueError naming a file that is missing, not of the form or not finite."""
    try:
        cameras = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"Cannot read the cameras {path}: {error}") from error
    keys = ("R", "t", "K", "depth_hist")
    if not isinstance(cameras, dict) or set(cameras) != set(keys):
        raise ValueError(f"{path} must be an object with {', '.join(keys)}, each with one entry per photo.")
    try:
        with np.errstate(over="ignore"):
            cameras = {key: np.asarray(value, dtype=np.float32) for key, value in cameras.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} holds something other than numbers in rows of one length: {error}") from None
    if wrong := [key for key, array in cameras.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{path}: {' and '.join(wrong)} must be finite numbers, also as float32.")
    return cameras


@torch.no_grad()
def ask(arguments: argparse.Namespace) -> str:
    """The greedy answer; writes the files that were asked for."""
    check_outputs(arguments.save_scene, arguments.save_views, arguments.confidence_percentile)
    if arguments.save_plan is not None:
        check_plan_path(arguments.save_plan)
    check_question(arguments.question)
    cameras = None if arguments.cameras is None else read_cameras(arguments.cameras)
    views = [read_photo(path) for path in arguments.photos]
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    with loading(arguments.model):
        processor = VggtQwen3Processor.from_pretrained(arguments.model, trust_remote_code=False)
        processor.split_prompt("")  # a chat template shows its errors where it is used
        model = load_model(arguments.model, "sdpa").to(device).eval()
    if arguments.image_mode is not None:
        processor.image_processor.mode = arguments.image_mode
    encoder = model.model.vision_model
    check_heads(encoder, arguments.save_scene, arguments.save_views)
    scene, questions = processor.prepare_questions(
        [[arguments.question]],
        images=[views],
        geometry=[cameras],
        anchors=[[arguments.action == "place_anchor"]],
    )
    scene = scene.to(device)
    options = {"do_sample": False, "max_new_tokens": arguments.max_new_tokens}
    if arguments.action is not None:
        room = model.config.text_config.max_position_embeddings - scene["input_ids"].shape[1] - len(questions[0][0])
        options["max_new_tokens"] = processor.action_token_budget(arguments.action, room)
        options["logits_processor"] = [processor.action_logits_processor(arguments.action)]
    answers, anchors = model.answer_questions(scene, questions, return_anchors=True, **options)
    answer = processor.decode(answers[0][0], skip_special_tokens=True).strip()
    if arguments.save_scene is not None or arguments.save_views is not None:
        geometry = encoder.predict_geometry(scene["pixel_values"])
        photo_mask = photo_masks(processor.image_processor, views)
        if arguments.save_scene is not None:
            save_scene(
                arguments.save_scene, scene["pixel_values"], geometry, photo_mask, arguments.confidence_percentile
            )
        if arguments.save_views is not None:
            save_views(arguments.save_views, scene["pixel_values"], geometry, photo_mask)
    if arguments.action is None:
        return answer
    from_head = model.config.numbers_from == "head"
    (action,) = processor.post_process_actions([answer], [cameras], anchors[0] if from_head else None)
    if arguments.save_plan is not None:
        save_action_plan(arguments.save_plan, action, cameras, arguments.question)
    if not action.metric:
        print("Without cameras lengths are relative: photos alone do not determine a scale.", file=sys.stderr)
    return action.to_json()


if __name__ == "__main__":
    main()
