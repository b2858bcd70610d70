"""The page of an offline evaluation: every plot and table of the figures, nothing from elsewhere."""

import re
from pathlib import Path

from typer.testing import CliRunner

from eval.metrics import Estimate
from eval.offline import write_metrics
from eval.report import table, write_evaluation_page
from recgpt.cli import app

VALUES = {
    **{
        f"{prefix}.{name}.leaf.{kind}.hr@{k}": Estimate(mean, mean - 0.01, mean + 0.02, 500)
        for prefix in ("models", "everyone")
        for name, mean in (("popularity", 0.2), ("v1", 0.21), ("v2_combined", 0.36))
        for kind in ("all", "new")
        for k in (10, 30)
    },
    "gain.popularity.leaf.all.hr@30": Estimate(0.16, 0.14, 0.18, 500),
    "weeks.thanksgiving.popularity.leaf.new.hr@30": Estimate(0.12, 0.1, 0.14, 60),
    "channels.habit.exclusive_recall": Estimate(0.1, 0.08, 0.12, 500),
    "channels.cognitive+habit.overlap": Estimate(0.3, 0.28, 0.32, 500),
    "cost.v1.prompt_tokens": Estimate(28000, 27000, 29000, 500),
}


def test_the_page_shows_all_there_is_and_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    tokens = {"v1": {"route": (28000.0, 900.0)}, "v2": {"planner": (1500.0, 240.0), "expert": (2300.0, 300.0)}}
    write_evaluation_page(path, VALUES, tokens)
    page = path.read_text()
    assert page.count("<svg") == 4
    for part in ("popularity", "v2_combined", "0.360", "planner, prompts", "thanksgiving", "cost.v1.prompt_tokens"):
        assert part in page
    addresses = set(re.findall(r"https?://[^\"' <)]+", page))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)  # names of SVG's own spaces
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    write_evaluation_page(tmp_path / "again.html", VALUES, tokens)
    assert (tmp_path / "again.html").read_text() == page


def test_a_page_of_a_first_part_leaves_the_rest_out(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_evaluation_page(
        path, {key: value for key, value in VALUES.items() if key.startswith("models.popularity")}, {}
    )
    assert path.read_text().count("<svg") == 1


def test_a_row_has_a_cell_for_each_column() -> None:
    rows = table(VALUES, "models")
    assert list(rows) == ["popularity", "v1", "v2_combined"]
    assert [cell.mean if cell else None for cell in rows["v1"]][:4] == [0.21, 0.21, 0.21, None]


def test_the_table_of_the_readme_is_made_from_the_figures(tmp_path: Path) -> None:
    metrics, readme = tmp_path / "metrics.json", tmp_path / "README.md"
    write_metrics(metrics, VALUES)
    readme.write_text(
        "# A\n\n<!-- made by `recgpt eval table --into eval/README.md` -->\nstale\n<!-- end of table -->\nmore\n"
    )
    arguments = ["eval", "table", str(metrics), "--into", str(readme)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    text = readme.read_text()
    assert "stale" not in text and text.startswith("# A\n") and text.endswith("<!-- end of table -->\nmore\n")
    assert "before the last basket of 500 households" in text
    assert "| v2_combined | 0.360 [0.350, 0.380] | 0.360 [0.350, 0.380] |  |  |" in text
    assert "v2_cognitive" not in text
    CliRunner().invoke(app, arguments)
    assert readme.read_text() == text
    readme.write_text("# none")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "lacks a place for the table" in result.output
    assert readme.read_text() == "# none"
    result = CliRunner().invoke(app, ["eval", "table", str(tmp_path / "absent.json")])
    assert result.exit_code == 1 and "has no figures" in result.output
