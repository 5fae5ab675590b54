# SPDX-License-Identifier: Apache-2.0
"""The report to look at: one HTML page with scores, accuracy per question type and every question with its views."""

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from recipes.metrics.three_d_qa.protocols import EM
from recipes.metrics.three_d_qa.scoring import ALL, METRICS

from .figures import draw_types
from .report import MODEL, Scored, interval_text


VIEW_SIZE = 220  # longer side of a view on the page, pixels
CHART_PROTOCOL = "llava3d"


def html_table(header: list[str], rows: list[list]) -> str:
    def line(tag: str, cells: list) -> str:
        texts = ["-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"

    return "<table>" + line("th", header) + "".join(line("td", row) for row in rows) + "</table>"


def data_uri(view: Image.Image) -> str:
    small = view.copy()
    small.thumbnail((VIEW_SIZE, VIEW_SIZE))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def report_page(
    title: str, subtitle: str, scored: Scored, rows: Sequence[dict], views: Iterable[tuple[str, list[Image.Image]]]
) -> str:
    """
    A page that needs nothing else: no script, picture or style from elsewhere.

    Args:
        scored: The model's scores, and those of the systems beside it.
        rows: Per question `question_id`, `scene_id`, `question_type`, `situation`, `question`, `prediction`,
            `references`, and `blind` if there is a blind model's answer. The scores are those of the rows that have
            references, in this order.
        views: The id and the views of each scene; of a scene that was read only the small views on the page are kept.
    """
    protocols = scored[MODEL]
    summaries = {name: scores.summary() for name, scores in protocols.items()}
    present = [metric for metric in METRICS if any(metric in summary for summary in summaries.values())]
    table = [
        [name, summary["n"], summary[EM], interval_text(summary["intervals"][EM]), *map(summary.get, present[1:])]
        for name, summary in summaries.items()
    ]
    others = [name for name in scored if name != MODEL]
    baseline_rows = []
    for protocol, scores in protocols.items():
        for metric in present:
            if (ALL, metric) not in scores.percent:
                continue
            cells = [f"{protocol} {metric}", scores.percent[ALL, metric]]
            for other in others:
                entry = scores.difference(scored[other][protocol]).get(metric)
                value = scored[other][protocol].percent.get((ALL, metric))
                cells += [value, entry and entry["difference"], entry and interval_text(entry["interval"])]
            baseline_rows.append(cells)
    header = ["", MODEL] + [cell for other in others for cell in (other, "difference", "95 %")]
    scored_rows = iter(range(len(rows)))
    cards = []
    for row in rows:
        number = next(scored_rows) if row["references"] else None
        cards.append(
            {
                "id": row["question_id"],
                "scene": row["scene_id"],
                "type": row["question_type"],
                "verdicts": {
                    name: [int(correct[number]) for correct in scores.verdicts.values()]
                    for name, scores in protocols.items()
                    if number is not None
                },
                **{key: row[key] for key in ("situation", "question", "prediction", "references")},
                **({"blind": row["blind"]} if "blind" in row else {}),
            }
        )
    data = {
        "protocols": list(protocols),
        "rows": cards,
        "views": {scene: [data_uri(view) for view in scene_views] for scene, scene_views in views},
    }
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "scores": html_table(["protocol", "questions", EM, "95 %", *present[1:]], table),
        "baselines": (
            f'<div class="wide">{html_table(header, baseline_rows)}</div>'
            if others
            else "<p>None was given: see <code>--blind-run</code> of recipes.eval.</p>"
        ),
        "chart_metric": f"{EM} under {CHART_PROTOCOL}",
        "chart": draw_types(
            {name: systems[CHART_PROTOCOL].summary()["types"] for name, systems in scored.items()}, EM
        ),
        # "</script>" in an answer must not end the script element.
        "data": json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    }
    return fill_template("page.html", parts)


def fill_template(name: str, parts: dict[str, str]) -> str:
    """The page `name` of this folder with `parts` in the places of its `{{part}}`; all pages share style and script."""
    folder = Path(__file__).parent
    shared = {"style": folder / "page.css", "script": folder / "page.js"}
    parts = parts | {part: path.read_text(encoding="utf-8") for part, path in shared.items()}
    pieces = (folder / name).read_text(encoding="utf-8").split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))


__all__ = ["data_uri", "fill_template", "html_table", "report_page"]
