# SPDX-License-Identifier: Apache-2.0
"""Stage 2: multi-view 3D question answering with geometry tokens.

accelerate launch recipes/stage2.py [--config FILE.yaml] [--any_key value ...]
"""

from recipes.runs.inputs import CONFIGS, check_inputs


if __name__ == "__main__":
    check_inputs(CONFIGS / "stage2_3d.yaml")
    # Only now: torch and transformers take seconds to import.
    from recipes.publishing.upload import publish_run
    from recipes.training.sft import main

    main(CONFIGS / "stage2_3d.yaml", publish_run)
