# SPDX-License-Identifier: Apache-2.0
"""The `evaluate` module: `evaluate.load(recipes.metrics.THREE_D_QA)`, which works offline."""

import datasets
import evaluate

from .captions import left_out
from .protocols import PROTOCOLS
from .question_types import question_type
from .scoring import score


DESCRIPTION = """
Scores of 3D question answering (ScanQA, SQA3D) as five projects compute them, side by side. They clean, tokenise and
match answers differently, which moves EM@1 and CIDEr by many points.
"""

INPUTS = """
Args:
    predictions (list of str): One answer per question.
    references (list of list of str): The answers of each question; all count.
    protocol (str): official, leo, llava3d, chatscene, video3dllm, or all (the default).
    dataset (str): scanqa (the default) or sqa3d: whose rules the protocol applies.
    questions (list of str, optional): Texts of the questions; with them there are scores per question type.
    captions (bool): Also BLEU, METEOR, ROUGE-L and CIDEr (the default); METEOR and the protocols that use the PTB
        tokenizer need Java.

Returns:
    {protocol: {metric: percent, ..., "n": int, "intervals": {metric: [low, high]}, "types": {type: the same}}} with the
    metrics EM@1, EM-R@1, BLEU-1..4, METEOR, ROUGE-L and CIDEr, as far as the protocol defines them for the dataset.

Examples:
    >>> metric = evaluate.load(recipes.metrics.THREE_D_QA)
    >>> scores = metric.compute(predictions=["a chair"], references=[["chair"]], captions=False)
    >>> scores["llava3d"]["EM@1"], scores["official"]["EM@1"]
    (100.0, 0.0)
"""

CITATION = """
@inproceedings{azuma2022scanqa, title={ScanQA: 3D Question Answering for Spatial Scene Understanding},
  author={Azuma, Daichi and Miyanishi, Taiki and Kurita, Shuhei and Kawanabe, Motoaki}, booktitle={CVPR}, year={2022}}
@inproceedings{ma2023sqa3d, title={SQA3D: Situated Question Answering in 3D Scenes},
  author={Ma, Xiaojian and Yong, Silong and Zheng, Zilong and Li, Qing and Liang, Yitao and Zhu, Song-Chun and
  Huang, Siyuan}, booktitle={ICLR}, year={2023}}
"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class ThreeDQA(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
            ),
            reference_urls=[f"https://github.com/{protocol.source.split()[0]}" for protocol in PROTOCOLS.values()],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        protocol: str = "all",
        dataset: str = "scanqa",
        questions: list[str] | None = None,
        captions: bool = True,
    ) -> dict[str, dict]:
        types = ["all"] * len(predictions) if questions is None else [question_type(q, dataset) for q in questions]
        scored = score({"system": predictions}, references, types, dataset, protocol, captions)
        for line in left_out() if captions else ():
            evaluate.logging.get_logger(__name__).warning(line)
        return {name: scores.summary() for name, scores in scored["system"].items()}
