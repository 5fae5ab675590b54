# SPDX-License-Identifier: Apache-2.0
"""Stage 1: single-view instruction tuning.

accelerate launch recipes/stage1.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.training.inputs import CONFIGS, check_inputs


if __name__ == "__main__":
    check_inputs(CONFIGS / "stage1_sft.yaml")
    from recipes.training.sft import main  # only now: torch and transformers take seconds to import

    main(CONFIGS / "stage1_sft.yaml")
