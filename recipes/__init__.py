# SPDX-License-Identifier: Apache-2.0
"""Training, evaluation and asking: what `accelerate launch` and `python -m` run."""
