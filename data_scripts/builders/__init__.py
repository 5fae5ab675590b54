# SPDX-License-Identifier: Apache-2.0
"""One builder per dataset."""

from .instruct import Instruct
from .scanqa import ScanQA
from .sqa3d import SQA3D


BUILDERS = {"scanqa": ScanQA, "sqa3d": SQA3D, "instruct": Instruct}

__all__ = ["BUILDERS", "Instruct", "SQA3D", "ScanQA"]
