# SPDX-License-Identifier: Apache-2.0
"""Processor of VGGT-Qwen3: views, camera geometry and chat text become model inputs."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import AddedToken
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import get_image_size
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .action_decoding_vggt_qwen3 import ActionLogitsProcessor
from .action_grammar_vggt_qwen3 import grammars_of, maximum_tokens, minimum_tokens
from .actions_vggt_qwen3 import Action, parse_actions
from .camera_checks_vggt_qwen3 import GEOMETRY_SHAPES, camera_problem
from .chat_template_vggt_qwen3 import CHAT_TEMPLATE, CHAT_TEMPLATE_NO_THINKING
from .pictures_vggt_qwen3 import upright_size
from .user_text_vggt_qwen3 import (
    ChatPrompt,
    encode_prompt,
    encode_prompts,
    encode_text,
    first_characters,
    hide_user_text,
    markup_of,
    with_markup,
)


VISION_END = "<|vision_end|>"


def count_image_tokens(projector, num_views: int, height: int, width: int, patch_size: int) -> int:
    """
    Image tokens of a scene of `num_views` views of `height` × `width` pixels (after preprocessing); none without views.
    `projector` is what has `projector_type` and `projector_num_latents`: a processor or a model's config.
    """
    if projector.projector_type == "perceiver":
        return projector.projector_num_latents if num_views else 0
    # Each 2×2 square of patches is one token; an odd last row or column counts as a whole one.
    return num_views * -(-height // patch_size // 2) * -(-width // patch_size // 2)


class VggtQwen3Processor(ProcessorMixin):
    r"""
    Makes the inputs of [`VggtQwen3ForConditionalGeneration`].

    Args:
        image_processor ([`VggtQwen3ImageProcessorPil`]): Brings the views to the encoder's size.
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with Qwen3's special tokens.
        chat_template (`str`, *optional*): Jinja template: `CHAT_TEMPLATE` or `CHAT_TEMPLATE_NO_THINKING`, as the language
            model was trained (the converter finds out); a checkpoint keeps the one that it was saved with.
        projector_type (`"perceiver"` or `"mlp"`): The model's projector: it decides the number of image tokens.
        projector_num_latents (`int`): Image tokens of a scene under `perceiver`.
        num_depth_bins (`int`): Bins of the depth histograms.
        has_anchor_head (`bool`): Whether the model has an anchor head: prompts that ask for a place then end with
            `<|anchor|>`.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template=None,
        projector_type: str = "perceiver",
        projector_num_latents: int = 128,
        num_depth_bins: int = 16,
        has_anchor_head: bool = False,
        **kwargs,
    ):
        self.projector_type = projector_type
        self.projector_num_latents = projector_num_latents
        self.num_depth_bins = num_depth_bins
        self.has_anchor_head = has_anchor_head
        self.image_token = "<|image_pad|>"
        self.geometry_token = "<|vision_pad|>"
        self.anchor_token = "<|anchor|>"
        anchor_tokens = [self.anchor_token] * has_anchor_head
        for token in (self.image_token, self.geometry_token, "<|vision_start|>", "<|vision_end|>", *anchor_tokens):
            if token not in tokenizer.get_vocab():
                raise ValueError(f"The tokenizer does not know {token}; VGGT-Qwen3 needs Qwen3's special tokens.")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.geometry_token_id = tokenizer.convert_tokens_to_ids(self.geometry_token)
        self._first_characters = (0, frozenset())
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def first_characters(self) -> frozenset[str]:
        """What the tokenizer's added tokens begin with."""
        size = len(self.tokenizer)
        if self._first_characters[0] != size:
            self._first_characters = (size, first_characters(self.tokenizer))
        return self._first_characters[1]

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        *,
        tokenize: bool = False,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        r"""
        As [`~transformers.ProcessorMixin.apply_chat_template`], where what the conversation says is text: special tokens
        in it (`<|im_end|>`, `<|image_pad|>`, and the tokenizer's others) are characters like any. Without `tokenize` the
        prompt is then a [`ChatPrompt`], which `__call__` reads in the same way.
        """
        template = str(chat_template or self.chat_template)
        conversation, characters = hide_user_text(conversation, self.first_characters, template)
        if characters is not None and tokenize:
            processor_kwargs = (processor_kwargs or {}) | {"characters": characters}
        prompt = super().apply_chat_template(
            conversation, chat_template, tokenize=tokenize, processor_kwargs=processor_kwargs, **kwargs
        )
        if characters is None or tokenize:
            return prompt
        return (
            ChatPrompt(prompt, characters) if isinstance(prompt, str) else [ChatPrompt(p, characters) for p in prompt]
        )

    def __call__(
        self, images=None, text=None, geometry=None, image_sizes=None, characters=None, **kwargs
    ) -> BatchFeature:
        r"""
        Args:
            images: The views of one scene (a list of images), or of a batch (a list of lists; an empty list for a
                text without images). View 0 is the reference frame.
            text (`str` or `list[str]`): Prompts. One with images has one `<|vision_start|><|image_pad|><|vision_end|>`
                (the chat template writes it); a prompt without any gets it in front. A prompt is markup, whose special
                tokens are read; those of users are text where `apply_chat_template` wrote the prompt.
            geometry (`dict` or `list[dict | None]`, *optional*): Per scene `R [V, 3, 3]` and `t [V, 3]`
                (world-to-camera, OpenCV axes, metres), `K [V, 3, 3]` (pixels of the image as given) and `depth_hist
                [V, bins]`; None for a scene without.
            image_sizes (`list[list[tuple[int, int]] | None]`, *optional*): Per text, (width, height) of every view that
                `K` is given in the pixels of, where the images themselves were decoded at a fraction of that size; by
                default the images' own.
            characters (`dict[int, int]`, *optional*): Of texts with stand-ins in user text what these stand for (see
                [`ChatPrompt`]; `apply_chat_template` gives it).
            kwargs: For the tokenizer and the image processor, such as `padding=True, return_tensors="pt"`.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask [B, L]`; with images `pixel_values [S, V, 3, H, W]`; where
            scenes differ in their number of views `view_mask [S, V]`; with geometry `extrinsics [S, V, 3, 4]`,
            `intrinsics [S, V, 3, 3]` (pixels of `pixel_values`), `depth_histogram [S, V, bins]` and `geometry_mask
            [S, V]`.

        Raises:
            ValueError: if a scene has no views, the counts of texts, placeholders, scenes and geometries do not
                match, or an array has the wrong shape or numbers that are not finite in float32.
        """
        if text is None:
            raise ValueError("VggtQwen3Processor needs text.")
        if images is None:
            if geometry is not None:
                raise ValueError("geometry describes images, but there are none.")
            return self._call(None, self._prompts(text, characters), **kwargs)
        texts = self._prompts(text, characters)
        scenes = self._nest_images(images, len(texts))
        geometries = [geometry] if isinstance(geometry, dict) else list(geometry or [None] * len(scenes))
        if len(geometries) != len(scenes):
            raise ValueError(f"Got {len(geometries)} geometries for {len(scenes)} scenes.")
        block = f"<|vision_start|>{self.image_token}<|vision_end|>"
        for row, (prompt, views) in enumerate(zip(texts, scenes, strict=True)):
            count = markup_of(prompt).count(self.image_token)
            if views and not count:
                texts[row] = with_markup(prompt, block + markup_of(prompt))
            elif count != bool(views):
                raise ValueError(
                    f"Text {row} has {count} {self.image_token} placeholders and {len(views)} views; a text with views "
                    "needs exactly one, a text without none."
                )
        geometries = [item for item, views in zip(geometries, scenes, strict=True) if views]
        sizes = [item for item, views in zip(image_sizes or [None] * len(scenes), scenes, strict=True) if views]
        scenes = [views for views in scenes if views]
        if not scenes:
            return self._call(None, texts, **kwargs)
        inputs = self._call(scenes, texts, **kwargs)
        if any(item is not None for item in geometries):
            sizes = [
                given
                or [
                    upright_size(image) if isinstance(image, Image.Image) else get_image_size(image)[::-1]
                    for image in views
                ]
                for given, views in zip(sizes, scenes, strict=True)
            ]
            inputs.update(self._geometry_inputs(sizes, geometries, np.shape(inputs["pixel_values"])[1], **kwargs))
            inputs.convert_to_tensors(kwargs.get("return_tensors"))
        return inputs

    @staticmethod
    def _prompts(text: str | Sequence[str], characters: dict[int, int] | None) -> list[str]:
        texts = [text] if isinstance(text, str) else list(text)
        return texts if characters is None else [ChatPrompt(prompt, characters) for prompt in texts]

    def _call(self, images: list[list] | None, texts: list[str], **kwargs) -> BatchFeature:
        """As [`~transformers.ProcessorMixin.__call__`], for texts that may be [`ChatPrompt`]."""
        if not any(isinstance(prompt, ChatPrompt) for prompt in texts):
            return super().__call__(images=images, text=texts, **kwargs)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)["text_kwargs"]
        inputs, scene = {}, 0
        if images is not None:
            inputs = super().__call__(images=images, **kwargs)
            for row, prompt in enumerate(texts):
                if self.image_token in markup_of(prompt):
                    views = self.replace_image_token(inputs, scene)
                    texts[row] = with_markup(prompt, markup_of(prompt).replace(self.image_token, views))
                    scene += 1
        tokens = encode_prompts(self.tokenizer, texts, self.first_characters, options)
        self._check_special_mm_tokens([markup_of(prompt) for prompt in texts], tokens, ["image"])
        return BatchFeature({**tokens, **inputs})

    def _nest_images(self, images, num_texts: int) -> list[list]:
        if not isinstance(images, (list, tuple)):
            images = [images]
        if any(isinstance(item, (list, tuple)) for item in images):
            scenes = [list(item) if isinstance(item, (list, tuple)) else [item] for item in images]
        else:
            scenes = [list(images)]
            if not images:
                raise ValueError("Got an empty list of views; pass images=None for a text without images.")
        if len(scenes) != num_texts:
            raise ValueError(
                f"Got {len(scenes)} scenes for {num_texts} texts. Pass one list of views per text (a list of lists)."
            )
        return scenes

    def prepare_inputs_layout(self, images=None, text=None, **kwargs):
        # The views are already nested by scene; only paths and URLs are left to load.
        _, text, videos, audio = super().prepare_inputs_layout(text=text, **kwargs)
        if images is not None:
            images = [self.image_processor.fetch_images(views) for views in images]
        return images, text, videos, audio

    def validate_inputs(self, images=None, text=None, **kwargs):
        # Counts of placeholders and scenes are checked in __call__, by scene rather than by image.
        if images is None:
            super().validate_inputs(text=text, **kwargs)

    def _process_images(self, images: list[list[Image.Image]], **kwargs) -> tuple[dict, list[str]]:
        kwargs.pop("return_tensors", None)
        flat = self.image_processor([view for views in images for view in views], **kwargs)["pixel_values"]
        num_views = max(len(views) for views in images)
        pixel_values = np.zeros((len(images), num_views, *np.shape(flat[0])), dtype=np.float32)
        start = 0
        for scene, views in zip(pixel_values, images, strict=True):
            scene[: len(views)] = flat[start : start + len(views)]
            start += len(views)
        processed = {"pixel_values": pixel_values}
        if any(len(views) != num_views for views in images):
            processed["view_mask"] = np.array([[view < len(views) for view in range(num_views)] for views in images])
        return processed, [self.replace_image_token(processed, scene) for scene in range(len(images))]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The geometry and image placeholders of scene `image_idx`."""
        _, num_views, _, height, width = image_inputs["pixel_values"].shape
        if "view_mask" in image_inputs:
            num_views = int(image_inputs["view_mask"][image_idx].sum())
        return self.expand_views(num_views, height, width)

    def expand_views(self, num_views: int, height: int, width: int) -> str:
        """Placeholders of a scene of `num_views` views of `height` × `width` pixels (after preprocessing)."""
        num_image_tokens = count_image_tokens(self, num_views, height, width, self.image_processor.patch_size)
        return self.geometry_token * num_views + self.image_token * num_image_tokens

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """
        Placeholders of scenes, by the name under which transformers' processors count them.

        Args:
            image_sizes (`list`, *optional*): Per scene, the (height, width) of each view before preprocessing; of a scene
                of one view, its (height, width) alone. What `__call__` refuses, as views of different sizes, is not looked at.
            kwargs: For the image processor: `image_size`, `mode`.

        Returns:
            `MultiModalData`: per scene `num_image_tokens`, and as `num_image_patches` its views: each has a geometry token.
        """
        if image_sizes is None:
            return MultiModalData()
        scenes = [[sizes] if np.ndim(sizes) == 1 else sizes for sizes in image_sizes]
        tokens = []
        for views in scenes:
            height, width = self.image_processor.get_resize(*views[0], **kwargs)[-2:]
            tokens.append(count_image_tokens(self, len(views), height, width, self.image_processor.patch_size))
        return MultiModalData(num_image_tokens=tokens, num_image_patches=[len(views) for views in scenes])

    def _geometry_inputs(
        self, sizes: list[list[tuple[int, int]]], geometries: list[dict | None], num_views: int, **kwargs
    ) -> dict:
        """Geometry of scenes whose views have `sizes` (width, height) before preprocessing, padded to `num_views`."""
        num_scenes = len(sizes)
        extrinsics = np.zeros((num_scenes, num_views, 3, 4), dtype=np.float32)
        intrinsics = np.zeros((num_scenes, num_views, 3, 3), dtype=np.float32)
        depth_histogram = np.zeros((num_scenes, num_views, self.num_depth_bins), dtype=np.float32)
        geometry_mask = np.zeros((num_scenes, num_views), dtype=bool)
        resize_kwargs = {key: kwargs[key] for key in ("image_size", "patch_size", "mode") if key in kwargs}
        for row, (views, geometry) in enumerate(zip(sizes, geometries, strict=True)):
            if geometry is None:
                continue
            arrays = {}
            for key, shape in {**GEOMETRY_SHAPES, "depth_hist": (self.num_depth_bins,)}.items():
                try:
                    with np.errstate(over="ignore"):  # refused below, by name
                        arrays[key] = np.asarray(geometry[key], dtype=np.float32)
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"geometry[{key!r}] of scene {row} is no array of numbers: {error!r}") from error
                if arrays[key].shape != (len(views), *shape):
                    raise ValueError(
                        f"geometry[{key!r}] of scene {row} must have shape {(len(views), *shape)} (one entry per view), "
                        f"got {arrays[key].shape}."
                    )
            if problem := camera_problem(arrays):
                raise ValueError(f"geometry of scene {row}, view {problem[0]}: {problem[1]}.")
            extrinsics[row, : len(views)] = np.concatenate([arrays["R"], arrays["t"][..., None]], axis=-1)
            depth_histogram[row, : len(views)] = arrays["depth_hist"]
            geometry_mask[row, : len(views)] = True
            for view, (width, height) in enumerate(views):
                new_height, new_width, top, left, _, _ = self.image_processor.get_resize(
                    height, width, **resize_kwargs
                )
                # A picture of width W spans -0.5 to W - 0.5: its principal point shifts beside being scaled.
                scale_x, scale_y = new_width / width, new_height / height
                shift_x, shift_y = left + (scale_x - 1) / 2, top + (scale_y - 1) / 2
                to_output = np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y], [0, 0, 1]])
                intrinsics[row, view] = to_output @ arrays["K"][view]
        return {
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
            "depth_histogram": depth_histogram,
            "geometry_mask": geometry_mask,
        }

    def encode_features(
        self,
        vision_features: Sequence[torch.Tensor],
        text: Sequence[str],
        image_sizes: Sequence[Sequence[tuple[int, int]]],
        geometry: Sequence[dict | None] | None = None,
        camera_encodings: Sequence[torch.Tensor] | None = None,
    ) -> BatchFeature:
        r"""
        As `__call__`, for scenes that were encoded before: no pixels are needed.

        Args:
            vision_features (`Sequence[torch.Tensor]`): Per scene, the encoder's tokens `[V, rows, columns, F]`.
            text (`Sequence[str]`): Per scene, a prompt with one image placeholder.
            image_sizes (`Sequence[Sequence[tuple[int, int]]]`): Per scene, (width, height) of every view before
                preprocessing: its intrinsics are given in those pixels.
            geometry (`Sequence[dict or None]`, *optional*): As in `__call__`.
            camera_encodings (`Sequence[torch.Tensor]`, *optional*): Per scene, what the encoder's heads predicted,
                `[V, 12 + 9 + bins]`.

        Returns:
            `BatchFeature` with `vision_features [S, V, rows, columns, F]` in place of `pixel_values`, and lists of
            `input_ids`.

        Raises:
            ValueError: if the scenes' views have different sizes, or a text has not just one placeholder.
        """
        shapes = {tuple(features.shape[1:]) for features in vision_features}
        if len(shapes) > 1:
            raise ValueError(f"Scenes of different sizes cannot share a batch: {sorted(shapes)} (rows, columns, F).")
        rows, columns, _ = shapes.pop()
        patch_size = self.image_processor.patch_size
        counts = [len(features) for features in vision_features]
        texts = []
        for row, (prompt, num_views) in enumerate(zip(text, counts, strict=True)):
            count = markup_of(prompt).count(self.image_token)
            if count != 1:
                raise ValueError(f"Text {row} has {count} {self.image_token} placeholders; it needs one.")
            views = self.expand_views(num_views, rows * patch_size, columns * patch_size)
            texts.append(with_markup(prompt, markup_of(prompt).replace(self.image_token, views)))
        data = {"input_ids": [encode_prompt(self.tokenizer, prompt, self.first_characters) for prompt in texts]}
        for name, arrays in (("vision_features", vision_features), ("camera_encodings", camera_encodings)):
            # Features are large (134 MB of 8 views of 448 pixels): one scene's stay where they are, memory-mapped, and
            # zeros are written where views are missing alone.
            if arrays is not None and len(counts) == 1:
                data[name] = arrays[0][None]
            elif arrays is not None:
                data[name] = arrays[0].new_empty(len(counts), max(counts), *arrays[0].shape[1:])
                for padded, views in zip(data[name], arrays, strict=True):
                    padded[: len(views)] = views
                    padded[len(views) :] = 0
        if min(counts) < max(counts):
            data["view_mask"] = torch.tensor([[view < count for view in range(max(counts))] for count in counts])
        if geometry is not None and any(item is not None for item in geometry):
            data.update(self._geometry_inputs(list(image_sizes), list(geometry), max(counts)))
        return BatchFeature(data)

    def add_anchor_token(self) -> int:
        """Makes the processor that of a model with an anchor head. Returns the id of `<|anchor|>`, new or known."""
        self.tokenizer.add_tokens([AddedToken(self.anchor_token, special=True, normalized=False)])
        self.has_anchor_head = True
        return self.tokenizer.convert_tokens_to_ids(self.anchor_token)

    def split_prompt(self, question: str, with_images: bool = True, anchor: bool = False) -> tuple[str, list[int]]:
        """
        The chat-formatted prompt of a question in two parts: the text that all questions of a scene share, up to and
        including the vision block ("" without images), and the tokens of the rest, up to where the answer begins; with
        `anchor` that is after `<|anchor|>`, if the model has an anchor head. Special tokens in the question are text.
        """
        content = [{"type": "image"}] * with_images + [{"type": "text", "text": question}]
        prompt = self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        whole = markup_of(prompt) + self.anchor_token * (anchor and self.has_anchor_head)
        prefix, separator, rest = whole.partition(VISION_END) if with_images else ("", "", whole)
        # A special token ends the prefix, so the two parts have the tokens that the whole has.
        return prefix + separator, encode_prompt(self.tokenizer, with_markup(prompt, rest), self.first_characters)

    def encode_text(self, text: str) -> list[int]:
        """The tokens of text alone, an answer for example: special tokens in it are characters like any."""
        return encode_text(self.tokenizer, text, self.first_characters)

    def prepare_questions(
        self,
        questions: Sequence[Sequence[str]],
        images: Sequence[Sequence] | None = None,
        geometry: Sequence[dict | None] | None = None,
        vision_features: Sequence[torch.Tensor] | None = None,
        image_sizes: Sequence[Sequence[tuple[int, int]]] | None = None,
        camera_encodings: Sequence[torch.Tensor] | None = None,
        anchors: Sequence[Sequence[bool]] | None = None,
    ) -> tuple[BatchFeature, list[list[list[int]]]]:
        r"""
        The inputs of [`VggtQwen3ForConditionalGeneration.answer_questions`], with exactly the tokens that each prompt
        has alone.

        Args:
            questions (`Sequence[Sequence[str]]`): Per scene, its questions.
            images (`Sequence[Sequence]`, *optional*): Per scene, its views. Without them (and without
                `vision_features`) the questions are asked blind.
            geometry (`Sequence[dict or None]`, *optional*): Per scene, its cameras as in `__call__`.
            image_sizes (*optional*): As in `__call__`, or in `encode_features`.
            vision_features, camera_encodings (*optional*): As in `encode_features`, instead of `images`.
            anchors (`Sequence[Sequence[bool]]`, *optional*): Per scene and question, whether it asks for a place (see
                `split_prompt`); by default none does.

        Returns:
            `(scene_inputs, question_ids)`: tensors of the scenes, left-padded, and per scene and question the tokens
            that follow the prefix.

        Raises:
            ValueError: if the numbers of scenes differ, a scene has no views or there is no scene.
        """
        scenes = images if vision_features is None else vision_features
        if not questions or (scenes is not None and len(scenes) != len(questions)):
            raise ValueError(f"Got {len(questions)} lists of questions for {len(scenes or [])} scenes.")
        anchors = anchors or [[False] * len(asked) for asked in questions]
        split = [
            [self.split_prompt(text, scenes is not None, anchor) for text, anchor in zip(asked, places, strict=True)]
            for asked, places in zip(questions, anchors, strict=True)
        ]
        question_ids = [[ids for _, ids in asked] for asked in split]
        if scenes is None:
            return BatchFeature({}), question_ids
        empty = [number for number, views in enumerate(scenes) if not len(views)]
        if empty:
            raise ValueError(f"Scene {empty[0]} has no views. Ask questions without images in a call of their own.")
        text = [self.split_prompt("")[0]] * len(questions)
        if vision_features is None:
            encoded = self(
                images=[list(views) for views in images],
                text=text,
                geometry=geometry,
                image_sizes=image_sizes,
                add_special_tokens=False,
                padding=False,
                images_kwargs={"return_tensors": "pt"},
            )
        else:
            encoded = self.encode_features(vision_features, text, image_sizes, geometry, camera_encodings)
        padded = self.tokenizer.pad({"input_ids": encoded.pop("input_ids")}, padding_side="left", return_tensors="pt")
        encoded.pop("attention_mask", None)
        tensors = {
            key: torch.as_tensor(np.asarray(value)) if not torch.is_tensor(value) else value
            for key, value in encoded.items()
        }
        return BatchFeature(tensors | {key: padded[key] for key in ("input_ids", "attention_mask")}), question_ids

    def action_logits_processor(self, action: str | Sequence[str]) -> ActionLogitsProcessor:
        """
        Holds generation to the text of an action: `model.generate(**inputs, logits_processor=[this])`.

        Args:
            action (`str` or `Sequence[str]`): "place_anchor", "list_objects" or "describe_room", or one of these per
                prompt. An output needs up to `maximum_action_tokens(action)` new tokens and cannot do with fewer than
                `minimum_action_tokens(action)`; one that is cut off is no action (see `post_process_actions`).

        Raises:
            ActionError: if there is no such action.
            ImportError: if xgrammar is not installed.
            ValueError: if the tokenizer cannot write an action.
        """
        return ActionLogitsProcessor(grammars_of(self.tokenizer), action)

    def minimum_action_tokens(self, action: str) -> int:
        """Tokens of the shortest such action with its end; see [`minimum_tokens`]."""
        return minimum_tokens(action, self.tokenizer)

    def maximum_action_tokens(self, action: str) -> int:
        """Tokens that no such action exceeds; see [`maximum_tokens`]."""
        return maximum_tokens(action)

    def action_token_budget(self, action: str, room: int) -> int:
        """
        `max_new_tokens` for an action where the model's context has room for `room` more tokens. Raises ValueError if
        not even the shortest fits; a longer one than fits is cut off.
        """
        shortest = self.minimum_action_tokens(action)
        if room < shortest:
            raise ValueError(f"The context has room for {room} more tokens; the shortest {action} takes {shortest}.")
        return min(room, self.maximum_action_tokens(action))

    def post_process_actions(
        self,
        texts: Sequence[str] | Sequence[Sequence[int]] | torch.Tensor,
        geometry: Sequence[dict | None] | None = None,
        anchors: Sequence[Sequence[float] | None] | torch.Tensor | None = None,
    ) -> list[Action]:
        """
        Typed actions from what a model generated; see [`Action`] for their world coordinates, RoomPlan and ARKit.

        Args:
            texts: The generated texts, or their tokens `[N, L]` without the prompts.
            geometry (`Sequence[dict or None]`, *optional*): Per text, its scene's cameras as in `__call__`; only `R` and
                `t` of view 0 are read. An action without has no world coordinates, and its scale is only relative.
            anchors (`[N, 9]`, *optional*): Centre, extent and normal of the anchor head, where there are any; they take
                the place of the numbers of place_anchor.

        Raises:
            ActionError: if a text is cut off, no JSON or not of its schema, naming the text and what is wrong where.
            ValueError: if the numbers of texts, geometries and anchors differ, or cameras are none.
        """
        texts = [
            text
            if isinstance(text, str)
            else self.tokenizer.decode(text, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for text in texts
        ]
        if anchors is not None:
            anchors = [anchor.tolist() if torch.is_tensor(anchor) else anchor for anchor in anchors]
        return parse_actions(texts, geometry, anchors)

    @property
    def model_input_names(self) -> list[str]:
        geometry_inputs = ["view_mask", "extrinsics", "intrinsics", "depth_histogram", "geometry_mask"]
        return super().model_input_names + geometry_inputs


__all__ = ["CHAT_TEMPLATE", "CHAT_TEMPLATE_NO_THINKING", "VggtQwen3Processor", "count_image_tokens"]
