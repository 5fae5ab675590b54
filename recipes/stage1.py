# SPDX-License-Identifier: Apache-2.0
"""Stage 1: single-view instruction tuning.

accelerate launch recipes/stage1.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.training.arguments import CONFIGS
from recipes.training.sft import main


if __name__ == "__main__":
    main(CONFIGS / "stage1_sft.yaml")
