# SPDX-License-Identifier: Apache-2.0
"""Question types read off the first words, as the two datasets' papers do; neither annotates them."""

# Azuma et al., ScanQA (CVPR 2022), table of question types; "existence" is what its "other" yes/no questions are.
SCANQA_BEGINNINGS = [
    ("color", ("what color", "what colour", "what is the color", "what is the colour")),
    ("number", ("how many",)),
    ("place", ("where",)),
    ("object nature", ("what type", "what kind", "what shape", "what size", "what material")),
    ("object", ("what", "which")),
    ("existence", ("is ", "are ", "does ", "do ", "can ")),
]
# Ma et al., SQA3D (ICLR 2023): a plain prefix, so that "What's" is "what". The rest is "others" there.
SQA3D_BEGINNINGS = [(word, (word,)) for word in ("what", "is", "how", "can", "which")]


def question_type(question: str, dataset: str) -> str:
    """The type of `question` under the rule of `dataset`: SQA3D's for `sqa3d`, ScanQA's for everything else."""
    beginning = " ".join(question.lower().split())
    for name, prefixes in SQA3D_BEGINNINGS if dataset == "sqa3d" else SCANQA_BEGINNINGS:
        if beginning.startswith(prefixes):
            return name
    return "others" if dataset == "sqa3d" else "other"


__all__ = ["question_type"]
