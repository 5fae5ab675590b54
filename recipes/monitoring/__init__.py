# SPDX-License-Identifier: Apache-2.0
"""The history of a run, as `recipes.monitor` tells and draws it."""
