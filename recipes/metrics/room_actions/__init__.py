# SPDX-License-Identifier: Apache-2.0
"""RoomPlan-style actions: do they parse, and are their boxes where the things are."""
