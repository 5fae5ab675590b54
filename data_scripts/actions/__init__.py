# SPDX-License-Identifier: Apache-2.0
"""Questions that ask for actions, and their answers, of the boxes of a room."""
