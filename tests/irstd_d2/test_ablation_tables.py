"""The tables as data: the paper's figures, in the paper's order, with a configuration for every row."""

import math
import re

import pytest

from irstd_d2.ablation import TABLES, Claim, Metric, Row, Table, select_rows
from irstd_d2.ablation.tables import ascending, better
from irstd_d2.errors import ConfigError

ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
ROWS = {
    **{f"auxdet-{n}": rows for n, rows in zip(range(1, 10), (4, 4, 6, 3, 4, 9, 7, 8, 12))},
    **{f"bafe-{n}": rows for n, rows in zip(range(2, 10), (3, 6, 4, 4, 4, 4, 9, 4))},
}
PRINTED = list(ROWS)
BEYOND = ["beyond-auxdet", "beyond-bafe"]


def test_all_tables_are_there():
    assert {name: len(table.rows) for name, table in TABLES.items() if table.printed} == ROWS
    assert [name for name, table in TABLES.items() if not table.printed] == BEYOND
    assert [TABLES[name].paper for name in BEYOND] == ["auxdet", "bafe"]
    assert TABLES["beyond-bafe"].heading == "BAFE-Net, beyond the paper"
    assert TABLES["bafe-4"].heading == "BAFE-Net, Table IV"
    assert TABLES["auxdet-5"].heading == "AuxDet, Table 5"


def section(papers_dir, table):
    """The text of a printed table, from its caption to the next one's."""
    number = int(table.name.split("-")[1])
    if table.paper == "auxdet":
        text, word, numbers = (papers_dir / "auxdet_paper.txt").read_text(), "Table", range(1, 11)
    else:
        text, word, numbers = (papers_dir / "bafe_net_paper.txt").read_text(), "TABLE", ROMAN
        number = ROMAN[number - 1]
    captions = [m for m in re.finditer(rf"^{word} (\w+):", text, re.M) if m[1] in map(str, numbers)]
    at = [m[1] for m in captions].index(str(number))
    end = captions[at + 1].start() if at + 1 < len(captions) else len(text)
    return text[captions[at].start() : end]


@pytest.mark.parametrize("name", PRINTED)
def test_figures_are_the_papers_in_its_order(papers_dir, name):
    table = TABLES[name]
    text, position = section(papers_dir, table), 0
    for row in table.rows:
        if not row.published:
            continue
        figures = [row.published[metric.name] for metric in table.metrics]
        printed = [f"{value:.1f}" if table.paper == "auxdet" else f"{value / 100:.3f}" for value in figures]
        found = re.compile(r"(?: \([^)]*\))? ".join(map(re.escape, printed))).search(text, position)
        assert found, f"{row.name}: {printed} is not printed after character {position} of the table"
        if row.parameters == row.parameters:
            around = text[text.rindex("\n", 0, found.start()) : text.index("\n", found.end())]
            assert re.search(rf"\b{row.parameters:g}0?(M| |$)", around), (row.name, around)
        position = found.end()


@pytest.mark.parametrize("name", PRINTED)
def test_what_the_paper_concludes_agrees_with_its_figures(name):
    table = TABLES[name]
    assert table.claims
    for claim in table.claims:
        metric = claim.metric or table.metrics[0].name
        assert table.row(claim.better).published[metric] > table.row(claim.worse).published[metric], claim


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_its_configurations(repo_root, name):
    for row in TABLES[name].trainable:
        files = [row.config, row.small.config if row.small else ""]
        assert all((repo_root / "configs" / file).is_file() for file in files if file), row
    labels = [row.label for row in TABLES[name].rows]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("name", BEYOND)
def test_every_addition_is_compared(name):
    table = TABLES[name]
    assert {row.name for row in table.trainable} == {n for c in table.claims for n in (c.better, c.worse)}
    assert all(math.isnan(row.parameters) and row.small and not row.published for row in table.rows)


def test_claims_over_a_series():
    assert better("a", "b", "c") == (Claim("a", "b"), Claim("a", "c"))
    assert ascending("a", "b", "c") == (Claim("b", "a"), Claim("c", "b"))


def test_every_row_file_is_in_a_table(repo_root):
    used = {row.config for table in TABLES.values() for row in table.trainable}
    folders = [repo_root / "configs" / paper / "ablation" for paper in ("auxdet", "bafe")]
    files = {f"{folder.parent.name}/ablation/{p.name}" for folder in folders for p in folder.glob("table*.yaml")}
    assert files == {name for name in used if "/ablation/table" in name}


def table(rows, claims=(), reference="a"):
    return Table("auxdet-5", "title", (Metric("AP50", "x/y"),), rows, reference, claims)


def test_selection_keeps_the_order_and_names_what_is_unknown():
    rows = (Row("a", "A", "a.yaml", {"AP50": 1}), Row("b", "B", ""), Row("c", "C", "c.yaml"))
    one, two = table(rows), table((rows[0], Row("d", "D", "d.yaml")))
    chosen = [(t is two, row.name) for t, row in select_rows([one, two], ["d", "a"])]
    assert chosen == [(False, "a"), (True, "a"), (True, "d")]
    assert [row.name for _, row in select_rows([one, two], [])] == ["a", "c", "a", "d"]
    with pytest.raises(ConfigError, match=r"\['b'\].*a, c, d"):
        select_rows([one, two], ["b", "c"])


@pytest.mark.parametrize(
    ("names", "claims", "reference"),
    [("aa", (), "a"), ("ab", (), "c"), ("ab", (Claim("a", "c"),), "a"), ("ab", (Claim("d", "a"),), "a")],
)
def test_a_table_refuses_unknown_names(names, claims, reference):
    with pytest.raises(ConfigError, match="auxdet-5"):
        table(tuple(Row(name, name, "") for name in names), claims, reference)
