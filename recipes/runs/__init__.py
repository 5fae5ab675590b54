# SPDX-License-Identifier: Apache-2.0
"""What a run is: its settings, records, checkpoints, the processes that make it, and how it ends."""
