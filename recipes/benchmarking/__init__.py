# SPDX-License-Identifier: Apache-2.0
"""What `recipes.benchmark` measures, and how."""
