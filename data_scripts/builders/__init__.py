# SPDX-License-Identifier: Apache-2.0
"""One builder per dataset."""

from .arkit_actions import ArkitActions
from .instruct import Instruct
from .records import Records
from .scanqa import ScanQA
from .sqa3d import SQA3D


BUILDERS = {
    "scanqa": ScanQA,
    "sqa3d": SQA3D,
    "arkit_actions": ArkitActions,
    "instruct": Instruct,
    "records": Records,
}

__all__ = ["BUILDERS", "ArkitActions", "Instruct", "Records", "SQA3D", "ScanQA"]
