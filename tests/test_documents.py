"""What README, docs/ and results/ point at is there: files, headings, options, benchmarks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")]
)
GROUPS = ("agent", "decoder", "dynamics", "encoder", "env", "experiment", "obs", "pooling")


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def headings(path):
    """Anchors of a document's headings, as GitHub makes them."""
    lines = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M).splitlines()
    titles = (line.lstrip("#").strip().lower() for line in lines if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_there_are_documents():
    assert {"README.md", "docs/data.md", "results/README.md"} <= set(names(DOCUMENTS))


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", link):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{link} in {path.name}"
        assert not anchor or anchor in headings(target), f"{link} in {path.name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_options_name_configurations(path):
    choices = {g: {p.stem for p in (ROOT / "configs" / g).glob("*.yaml")} for g in GROUPS}
    choices["experiment"] |= {f"small/{p.stem}" for p in (ROOT / "configs").glob("*/small/*.yaml")}
    assert all(choices.values())
    options = rf"(?<![\w.])({'|'.join(GROUPS)})=([a-z][a-z0-9_/-]*)(?![\w(])"
    for group, name in re.findall(options, path.read_text()):
        assert name in choices[group] or name == group, f"{group}={name} in {path.name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=names(DOCUMENTS))
def test_scripts_benchmarks_and_studies_exist(path):
    text = path.read_text()
    for script in re.findall(r"scripts/(\w+\.py)", text):
        assert (ROOT / "scripts" / script).is_file(), f"{script} in {path.name}"
    for benchmark in re.findall(r"bench_[a-z]\w*\.py", text):
        assert (ROOT / "tests/benchmarks" / benchmark).is_file(), f"{benchmark} in {path.name}"
    for study in re.findall(r"results/([a-z]\w*\.yaml)", text):
        assert (ROOT / "results" / study).is_file(), f"{study} in {path.name}"


@pytest.mark.parametrize("group", ["encoder", "decoder", "dynamics", "pooling"])
def test_every_class_is_named_by_one_of_its_configurations(group):
    text = "".join(path.read_text() for path in DOCUMENTS if path.name != "CHANGELOG.md")
    classes = {}
    for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
        target = re.search(r"^_target_: (\S+)", path.read_text(), flags=re.M)
        if target is not None:
            classes.setdefault(target[1], []).append(path.stem)
    assert classes
    for target, found in classes.items():
        assert any(re.search(rf"\b{name}\b", text) for name in found), f"{target}: {found}"
