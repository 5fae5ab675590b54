# SPDX-License-Identifier: Apache-2.0
"""Stage 3: actions in a room (ARKitScenes, RoomPlan) as structured JSON, with an anchor head for the numbers.

accelerate launch recipes/stage3.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.runs.inputs import CONFIGS, check_inputs


if __name__ == "__main__":
    check_inputs(CONFIGS / "stage3_arkit.yaml")
    # Only now: torch and transformers take seconds to import.
    from recipes.publishing.upload import publish_run
    from recipes.training.sft import main

    main(CONFIGS / "stage3_arkit.yaml", publish_run)
