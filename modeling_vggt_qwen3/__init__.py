# SPDX-License-Identifier: Apache-2.0
"""VGGT-Qwen3 for transformers. Importing this package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from .action_boxes_vggt_qwen3 import ActionBox
from .actions_vggt_qwen3 import ACTION_SCHEMAS, Action, ActionError, DescribeRoom, ListObjects, PlaceAnchor
from .configuration_vggt_qwen3 import VggtConfig, VggtQwen3Config
from .image_processing_vggt_qwen3 import VggtQwen3ImageProcessorPil
from .modeling_vggt import VggtModel, VggtPreTrainedModel, convert_vggt_state_dict
from .modeling_vggt_qwen3 import VggtQwen3ForConditionalGeneration, VggtQwen3Model, VggtQwen3PreTrainedModel
from .processing_vggt_qwen3 import VggtQwen3Processor


AutoConfig.register("vggt", VggtConfig)
AutoConfig.register("vggt_qwen3", VggtQwen3Config)
AutoModel.register(VggtConfig, VggtModel)
AutoModel.register(VggtQwen3Config, VggtQwen3Model)
AutoModelForImageTextToText.register(VggtQwen3Config, VggtQwen3ForConditionalGeneration)
AutoImageProcessor.register(VggtQwen3Config, image_processor_classes={"pil": VggtQwen3ImageProcessorPil})
AutoProcessor.register(VggtQwen3Config, VggtQwen3Processor)

# The code travels with every saved checkpoint, so that trust_remote_code=True needs nothing but the folder.
VggtConfig.register_for_auto_class()
VggtModel.register_for_auto_class("AutoModel")
VggtQwen3Config.register_for_auto_class()
VggtQwen3Model.register_for_auto_class("AutoModel")
VggtQwen3ForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
VggtQwen3ImageProcessorPil.register_for_auto_class("AutoImageProcessor")
VggtQwen3Processor.register_for_auto_class("AutoProcessor")

__all__ = [
    "ACTION_SCHEMAS",
    "Action",
    "ActionBox",
    "ActionError",
    "DescribeRoom",
    "ListObjects",
    "PlaceAnchor",
    "VggtConfig",
    "VggtModel",
    "VggtPreTrainedModel",
    "VggtQwen3Config",
    "VggtQwen3ForConditionalGeneration",
    "VggtQwen3ImageProcessorPil",
    "VggtQwen3Model",
    "VggtQwen3PreTrainedModel",
    "VggtQwen3Processor",
    "convert_vggt_state_dict",
]
