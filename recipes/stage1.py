# SPDX-License-Identifier: Apache-2.0
"""Stage 1: single-view instruction tuning.

accelerate launch recipes/stage1.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.runs.inputs import CONFIGS, check_inputs


if __name__ == "__main__":
    check_inputs(CONFIGS / "stage1_sft.yaml")
    # Only now: torch and transformers take seconds to import.
    from recipes.publishing.upload import publish_run
    from recipes.training.sft import main

    main(CONFIGS / "stage1_sft.yaml", publish_run)
