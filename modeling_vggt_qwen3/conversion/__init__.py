# SPDX-License-Identifier: Apache-2.0
"""The parts of `convert_vggt_qwen3_to_hf`: what makes checkpoints. They do not travel with them."""
