# SPDX-License-Identifier: Apache-2.0
"""Downloads ARKitScenes, with the options of the official script, in the layout that `data_scripts.prepare` reads.

    python -m data_scripts.download_arkitscenes 3dod --output ARKitScenes
    python -m data_scripts.download_arkitscenes 3dod --split Validation --video_id 41069021 41069025 --output ARKitScenes
    python -m data_scripts.download_arkitscenes raw --split Training --output ARKitScenes \\
        --assets lowres_wide lowres_depth lowres_wide_intrinsics lowres_wide.traj annotation

Without videos, all those of Apple's own list (of `--split`, if given), which is fetched as well.

An interrupted download goes on where it stopped; what is complete is not fetched again. Exit status: 0 everything is there,
1 something could not be fetched, 2 the arguments cannot be used, 130 interrupted.

Source of the options, addresses and names: https://github.com/apple/ARKitScenes (DATA.md, download_data.py).
"""

import argparse
import csv
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from .download import DiskFullError, Downloader, DownloadError, Item
from .paths import path_fault
from .plain import plain
from .readers.arkitscenes import SPLITS, WITHOUT_3DOD


BASE_URL = "https://docs-assets.developer.apple.com/ml-research/datasets/arkitscenes/v1"
# The lists of videos lie with the code of Apple's script, not with the data.
LIST_URL = "https://raw.githubusercontent.com/apple/ARKitScenes/main"
LISTS = {"3dod": "threedod/3dod_train_val_splits.csv", "raw": "raw/raw_train_val_splits.csv"}
ASSETS_OF_3DOD = ("annotation", "mesh", "lowres_wide.traj")  # which the videos WITHOUT_3DOD lack
MEAN_3DOD_SIZE = 623.4e9 / 5047  # bytes of a scan: what DATA.md says of all
ARCHIVES = ("confidence", "highres_depth", "lowres_depth", "lowres_wide", "lowres_wide_intrinsics", "ultrawide")
ARCHIVES += ("ultrawide_intrinsics", "vga_wide", "vga_wide_intrinsics", "wide", "wide_intrinsics")
FILES = {
    "mov": "{video_id}.mov",
    "annotation": "{video_id}_3dod_annotation.json",
    "mesh": "{video_id}_3dod_mesh.ply",
    "lowres_wide.traj": "lowres_wide.traj",
}


def check(args: argparse.Namespace) -> None:
    """Sets `dataset` where it was left open; raises `ValueError` if the arguments make no sense."""
    if args.video_id and args.split is None:
        raise ValueError("--video_id needs --split")
    args.dataset = args.dataset or ("raw" if args.assets else "3dod")
    if args.dataset == "3dod" and args.assets:
        raise ValueError("--assets are those of raw; 3dod comes as one archive per video")
    if args.dataset == "raw" and not args.assets:
        raise ValueError("raw needs --assets")


def find_videos(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Split and id of each video that is asked for, once each; Apple's list is fetched if nothing else says which.

    Raises:
        ValueError: a list or an id cannot be used.
        DownloadError: Apple's list could not be fetched.
    """
    if args.video_id:
        videos = [(args.split, video_id) for video_id in args.video_id]
    else:
        path = args.video_id_csv
        if path is None:
            url = f"{args.list_url.rstrip('/')}/{LISTS[args.dataset]}"
            path = args.output / args.dataset / url.rpartition("/")[2]
            with tqdm(disable=True) as bar:
                try:
                    Downloader(keep_zip=False, bar=bar).fetch(Item(url, path, archive=False))
                except DiskFullError:
                    raise
                except DownloadError as error:
                    raise DownloadError(f"{error}: the list of videos; give one of yours by --video_id_csv") from None
        videos = _read_csv(path, args.split)
    for _, video_id in videos:
        if not is_video_id(video_id):
            raise ValueError(f"'{plain(video_id)}' is no video id")
    return list(dict.fromkeys(videos))


def is_video_id(video_id: str) -> bool:
    """Whether it is a number; it becomes the name of a folder."""
    return video_id.isascii() and video_id.isdigit() and path_fault(video_id, nested=False) is None


def plan(args: argparse.Namespace, videos: list[tuple[str, str]]) -> tuple[list[Item], list[str]]:
    """The files of `videos` to fetch, and the ids of the videos that lack some of what is asked for on the server."""
    base = args.base_url.rstrip("/")
    folder = args.output / args.dataset
    server_folder = "threedod" if args.dataset == "3dod" else "raw"
    items = [Item(f"{base}/{server_folder}/metadata.csv", folder / "metadata.csv", archive=False)]
    incomplete = []
    for split, video_id in videos:
        exempt = video_id in WITHOUT_3DOD
        if exempt and (args.dataset == "3dod" or set(ASSETS_OF_3DOD) & set(args.assets)):
            incomplete.append(video_id)
        if args.dataset == "3dod":
            if not exempt:
                items.append(Item(f"{base}/threedod/{split}/{video_id}.zip", folder / split / video_id, archive=True))
            continue
        for asset in dict.fromkeys(args.assets):
            if exempt and asset in ASSETS_OF_3DOD:
                continue
            archive = asset in ARCHIVES
            name = f"{asset}.zip" if archive else FILES[asset].format(video_id=video_id)
            target = folder / split / video_id / (asset if archive else name)
            items.append(Item(f"{base}/raw/{split}/{video_id}/{quote(name)}", target, archive))
    return items, incomplete


def announce(
    args: argparse.Namespace, videos: list[tuple[str, str]], items: list[Item], incomplete: list[str]
) -> None:
    """Says what is to come: the videos, of 3dod about how many bytes, and whether the disk has room for them."""
    counts = [f"{split} {count}" for split in SPLITS if (count := sum(of == split for of, _ in videos))]
    print(f"{args.dataset}: {len(videos)} videos ({', '.join(counts)})")
    if incomplete:
        absent = [asset for asset in ASSETS_OF_3DOD if asset in (args.assets or [asset])]
        print(
            f"{len(incomplete)} videos that have no {', '.join(absent)} on the server, as Apple's script knows: "
            f"{'not fetched' if args.dataset == '3dod' else 'fetched without'}: {', '.join(sorted(incomplete))}"
        )
    if args.dataset == "3dod":
        size = MEAN_3DOD_SIZE * sum(item.archive and not item.target.exists() for item in items)
        place = next(path for path in (args.output.absolute(), *args.output.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        mean = f"{MEAN_3DOD_SIZE / 1e6:.0f} MB a scan on average"
        print(f"about {size / 1e9:.1f} GB to fetch ({mean}), {free / 1e9:.1f} GB free")
        if size > free:
            print(f"warning: {args.output} has no room for all of them", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.download_arkitscenes", description=__doc__.split("\n")[0]
    )
    parser.add_argument("dataset", nargs="?", choices=("3dod", "raw"), help="default: raw with --assets, else 3dod")
    parser.add_argument("--split", choices=SPLITS, help="default: both")
    videos = parser.add_mutually_exclusive_group()
    videos.add_argument("--video_id", "--video-id", nargs="+")
    videos.add_argument(
        "--video_id_csv", "--video-id-csv", type=Path, help="columns video_id and fold; default: Apple's list"
    )
    parser.add_argument(
        "--assets", "--raw_dataset_assets", nargs="+", choices=(*ARCHIVES, *FILES), metavar="ASSET", help="of raw"
    )
    parser.add_argument("--output", "--download_dir", type=Path, required=True)
    parser.add_argument("--keep_zip", "--keep-zip", action="store_true", help="keep the archives beside the folders")
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror (default: %(default)s)")
    parser.add_argument(
        "--list-url",
        default=LIST_URL,
        help="folder of threedod/3dod_train_val_splits.csv and such (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=4, help="downloads at a time (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"argument --workers: {args.workers} is not positive")
    try:
        check(args)
        videos = find_videos(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DownloadError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    items, incomplete = plan(args, videos)
    announce(args, videos, items, incomplete)

    fetched, there, failures = 0, 0, []
    with tqdm(unit="B", unit_scale=True, desc="Downloading") as bar, ThreadPoolExecutor(args.workers) as pool:
        downloader = Downloader(args.keep_zip, bar)
        futures = [pool.submit(downloader.fetch, item) for item in items]
        try:
            for future in as_completed(futures):
                try:
                    is_new = future.result()
                except DiskFullError as error:
                    downloader.stopped.set()
                    pool.shutdown(cancel_futures=True)
                    failures.append(str(error))
                    break
                except DownloadError as error:
                    failures.append(str(error))
                else:
                    fetched, there = fetched + is_new, there + (not is_new)
        except BaseException:
            downloader.stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if sys.exc_info()[0] is not KeyboardInterrupt:
                raise
            print("interrupted: the same command goes on from here", file=sys.stderr)
            return 130
    for failure in sorted(failures):
        print(f"failed: {failure}", file=sys.stderr)
    print(f"{args.output}: {fetched} fetched, {there} there already, {len(failures)} failed")
    return 1 if failures else 0


def _read_csv(path: Path, split: str | None) -> list[tuple[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:  # a field of more than 131 kB; another encoding
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    videos = []
    for number, row in enumerate(rows, start=2):
        if not row.get("video_id") or row.get("fold") not in SPLITS:
            raise ValueError(f"{path}: line {number}: expected columns video_id and fold (Training or Validation)")
        video_id = row["video_id"].removesuffix(".0")  # as pandas writes a column with gaps
        if not is_video_id(video_id):
            raise ValueError(f"{path}: line {number}: '{plain(video_id)}' is no video id")
        if split in (None, row["fold"]):
            videos.append((row["fold"], video_id))
    if not videos:
        raise ValueError(f"{path}: no video" + (f" of {split}" if split else ""))
    return videos


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
