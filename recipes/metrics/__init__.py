# SPDX-License-Identifier: Apache-2.0
"""Modules of the `evaluate` library: `evaluate.load("recipes/metrics/three_d_qa")`."""
