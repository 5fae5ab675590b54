# SPDX-License-Identifier: Apache-2.0
"""Stage 2: multi-view 3D question answering with geometry tokens.

accelerate launch recipes/stage2.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.training.inputs import CONFIGS, check_inputs


if __name__ == "__main__":
    check_inputs(CONFIGS / "stage2_3d.yaml")
    from recipes.training.sft import main  # only now: torch and transformers take seconds to import

    main(CONFIGS / "stage2_3d.yaml")
