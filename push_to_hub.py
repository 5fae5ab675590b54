# SPDX-License-Identifier: Apache-2.0
"""Publishes a trained checkpoint as a repo of the Hub that strangers can load, with a card that tells what it is.

    python push_to_hub.py --model demo/stage2 --repo-id org/name --dry-run
    python push_to_hub.py --model demo/stage2 --repo-id org/name [--private] [--tag v1.1] [--endpoint URL]

Before anything is uploaded the checkpoint is loaded from the files to be published alone, in a new process that does not have this
package, and the card's code is run. Evaluations of these weights (outputs of recipes.eval) are looked for beside the checkpoint.
A second call uploads nothing if nothing has changed; an interrupted one goes on.

Exit status: 0 published (or published before), 1 the upload failed, 2 the checkpoint or the repo cannot be used.
"""

import argparse
import sys
from pathlib import Path

from huggingface_hub import HfApi

from data_scripts.credentials import DiscreetParser
from data_scripts.hub import UploadError, check_names, check_token
from recipes.publishing.upload import make_publication, publish


def main() -> int:
    parser = DiscreetParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="output folder of a recipe (recipes/stage2.py, ...)")
    parser.add_argument(
        "--repo-id", required=True, metavar="ORG/NAME", help="repo to publish to; made if it is not there"
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="outputs of recipes.eval; by default all of these weights that lie beside the model",
    )
    parser.add_argument("--private", action="store_true", help="make the repo private")
    parser.add_argument("--tag", default="v1.0", help="name of this version (default: v1.0)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print card and files, upload nothing"
    )
    parser.add_argument("--endpoint", metavar="URL", help="another Hub than HF_ENDPOINT or huggingface.co")
    arguments = parser.parse_args()
    api = HfApi(endpoint=arguments.endpoint, library_name="vggt-qwen3")
    try:
        check_names(arguments.repo_id, arguments.tag)
        if not arguments.dry_run:
            check_token(api)  # before the checkpoint is run, which takes long
        publication = make_publication(arguments.model, arguments.repo_id, arguments.evaluation)
    except (OSError, ValueError, UploadError) as error:
        print(f"push_to_hub.py: {error}", file=sys.stderr)
        return 2
    if arguments.dry_run:
        print(publication.card)
        sizes = {path: publication.size(path) for path in sorted(publication.files)}
        print("\n".join(f"{size:>14,}  {path}" for path, size in sizes.items()))
        print(f"\n{len(sizes)} files, {sum(sizes.values()):,} bytes: checked; nothing was uploaded.")
        return 0
    try:
        url, changed = publish(publication, api, arguments.repo_id, private=arguments.private, tag=arguments.tag)
    except UploadError as error:
        print(f"push_to_hub.py: {error}", file=sys.stderr)
        return 1
    print(f"{'published' if changed else 'already published'}: {url} (tag {arguments.tag})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
