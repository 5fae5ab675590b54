# SPDX-License-Identifier: Apache-2.0
"""From raw files to a prepared repository: what all builders share."""
