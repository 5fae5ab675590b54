# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning of VGGT-Qwen3."""
