# SPDX-License-Identifier: Apache-2.0
"""Scores of 3D question answering under the five protocols in use. The `evaluate` module itself is `three_d_qa.py`."""
