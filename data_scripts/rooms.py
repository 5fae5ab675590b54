# SPDX-License-Identifier: Apache-2.0
"""Generates procedural rooms as raw dumps in the formats of ScanNet, ScanQA, SQA3D and LLaVA-style instruction data.

    python -m data_scripts.rooms --output raw/rooms --scenes 1000 --views 4 --image-size 84 --seed 0 --preview
    python -m data_scripts.rooms --output raw/rooms --scenes 100 --views 8 --image-size 224 --seed 0 \\
        --formats scannet sens arkitscenes arkitscenes_raw roomplan

The formats: `scannet` frame dumps, the same scans as in `scannet_frames_25k` (`scannet_25k`), with padded names and intrinsics per frame
(`scannet_padded`) and as `sens` streams, `arkitscenes` in the 3dod layout and `arkitscenes_raw` in the raw one, `roomplan` exports. The ARKitScenes scans and the exports of a room bear the same video id and share a world.

The output folder appears only when it is whole. Equal arguments give equal bytes, whatever --workers is.
"""

import argparse
import sys
from pathlib import Path

from .files import describe_os_error, is_disk_full
from .synthetic import FORMATS, Settings, generate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.rooms",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    parser.add_argument("--scenes", type=int, required=True, help="number of rooms, at least 3")
    parser.add_argument("--views", type=int, required=True, help="pictures of each room")
    parser.add_argument("--image-size", type=int, required=True, help="pixels along each side of the square pictures")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--instruct-images", type=int, help="single pictures with a conversation (default: as --scenes)"
    )
    parser.add_argument(
        "--objects", type=int, nargs=2, metavar=("MIN", "MAX"), default=(3, 5), help="objects in a room"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["scannet"], help="raw formats each room is written in"
    )
    parser.add_argument("--preview", action="store_true", help="also write preview.png, a contact sheet")
    options = parser.parse_args(arguments)
    try:
        settings = Settings(
            scenes=options.scenes,
            views=options.views,
            image_size=options.image_size,
            seed=options.seed,
            instruct_images=options.scenes if options.instruct_images is None else options.instruct_images,
            objects=tuple(options.objects),
            formats=tuple(options.formats),
        )
        counts = generate(settings, options.output, workers=options.workers, preview=options.preview)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {options.output}: not written: {describe_os_error(error, options.output)}", file=sys.stderr)
        return 1 if is_disk_full(error) else 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(
        f"{options.output}: {counts['scenes']} scenes, {counts['views']} views, {counts['scanqa']} ScanQA and "
        f"{counts['sqa3d']} SQA3D questions, {counts['instruct']} instruction pictures"
    )
    if counts["empty"]:
        print(
            f"warning: these rooms show too little for a question of {', '.join(counts['empty'])}, which cannot be "
            "prepared; more scenes or views give some",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
