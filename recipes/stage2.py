# SPDX-License-Identifier: Apache-2.0
"""Stage 2: multi-view 3D question answering with geometry tokens.

accelerate launch recipes/stage2.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.training.arguments import CONFIGS
from recipes.training.sft import main


if __name__ == "__main__":
    main(CONFIGS / "stage2_3d.yaml")
