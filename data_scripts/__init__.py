# SPDX-License-Identifier: Apache-2.0
"""Raw dumps and annotation files to prepared repos that `datasets.load_dataset` reads."""
