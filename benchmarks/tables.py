"""Prints the newest results as Markdown tables: those in README.md and docs/performance.md.

`make bench-tables` runs it. A cell holds the median time in µs and, but for fedkern's, the median
ratio to fedkern in the same rounds.
"""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
BENCHMARKS = (
    "calibrated_ce",
    "class_counts",
    "linear",
    "not_true_distillation",
    "sgd_step",
    "simplex_assign_subregions",
    "simplex_interpolate",
    "simplex_project",
    "simplex_riesz_energy",
    "simplex_sample",
    "simplex_sample_ball",
)
# What makes two rows results of the same thing; the newer one counts.
SETTING = ("measure", "device", "gpu", "threads", "cpu_capability", "huge_pages")
SUBJECT = ("shape", "kind", "dtype", "labels", "classes", "tensors", "points", "center")


def newest(benchmark: str) -> list[Row]:
    path = RESULTS / f"{benchmark}.jsonl"
    if not path.is_file():
        return []
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = {"measure": "forward_backward", **json.loads(line)}
        key = json.dumps([row.get(name) for name in (*SETTING, *SUBJECT, "variant")])
        rows[key] = row
    return list(rows.values())


def subject(row: Row) -> str:
    names = [str(row[name]).removeprefix("torch.") for name in SUBJECT if name in row]
    if "shape" in row:
        names[0] = " × ".join(map(str, row["shape"]))
    return ", ".join(names)


def cell(row: Row | None) -> str:
    if row is None:
        return ""
    if "bytes" in row:
        return f"{row['times_logits']:.3f}"
    text = f"{row['seconds'] * 1e6:,.1f}"
    if row["variant"] != "fedkern":
        text += f" ({row['times_fedkern']:.2f}×)"
    if "fraction_of_copy" in row and row["variant"] != "copy":
        text += f" {row['fraction_of_copy']:.0%}"
    return text


def table(title: str, rows: list[Row]) -> str:
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    of = {(subject(row), row["variant"]): row for row in rows}
    lines = [
        f"**{title}**",
        "",
        f"| | {' | '.join(variants)} |",
        "|---" * (len(variants) + 1) + "|",
    ]
    for name in dict.fromkeys(subject(row) for row in rows):
        lines.append(f"| {name} | {' | '.join(cell(of.get((name, v))) for v in variants)} |")
    return "\n".join(lines)


def main() -> None:
    for benchmark in BENCHMARKS:
        settings: dict[str, list[Row]] = {}
        for row in newest(benchmark):
            where = row["gpu"] if row["device"] == "cuda" else row["cpu_capability"]
            words = [
                f"{row['threads']} thread(s)",
                where,
                row["processor"],
                f"torch {row['torch']}",
            ]
            words += ["huge pages for all"] * bool(row.get("huge_pages"))
            title = f"{benchmark}, {row['measure']}: {', '.join(words)}"
            settings.setdefault(title, []).append(row)
        for title, rows in sorted(settings.items()):
            commits = ", ".join(sorted({row["commit"] for row in rows}))
            print(f"{table(f'{title} (commit {commits})', rows)}\n")


if __name__ == "__main__":
    main()
