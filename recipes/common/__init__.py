# SPDX-License-Identifier: Apache-2.0
"""What training, evaluation and the commands share: scenes, loading, generation, the feature store, tables."""
