"""The documentation is true: its Python runs and prints what it shows, its commands exist, its links lead somewhere.

`python tests/test_docs.py --update` writes what the blocks of the pages print into the pages.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path

import click
import pytest

from trisense.cli import commands
from trisense.recipe import names, read

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS += [ROOT / "examples" / "README.md"]
# Pages whose blocks run in order, each page in a namespace of its own.
PAGES = [ROOT / "docs" / "one_sample.md", ROOT / "docs" / "one_question.md"]
CARD = ROOT / "trisense" / "spark" / "README.md"

# A block of Python and, right below it, what it prints.
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
TABLE = re.compile(r"<!-- (\w+) table -->\n(.*?)<!-- /\1 table -->", re.DOTALL)
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
PARTS = re.compile(r"(?<=<!-- parts -->\n).*?(?=<!-- /parts -->)", re.DOTALL)
DESIGNS = re.compile(r"(?<=<!-- designs -->\n).*?(?=<!-- /designs -->)", re.DOTALL)


def run(page: Path) -> Iterator[tuple[re.Match[str], str]]:
    """Each Python block of a page with what it really prints, run at the repository's root."""
    namespace: dict[str, object] = {"__name__": page.stem}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        # The line numbers of a traceback are those of the page.
        code = "\n" * text.count("\n", 0, block.start("code")) + block["code"]
        printed = io.StringIO()
        with chdir(ROOT), warnings.catch_warnings(), redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), namespace)
        yield block, printed.getvalue()


def update(page: Path) -> str:
    """The page with what its blocks print now."""
    text, done, parts = page.read_text(encoding="utf-8"), 0, []
    for block, printed in run(page):
        shown = f"\n```text\n{printed}```\n" if printed else ""
        parts += [text[done : block.start()], f"```python\n{block['code']}```\n{shown}"]
        done = block.end()
    return "".join([*parts, text[done:]])


def published() -> list[str]:
    """The published designs, without their twins on spark's parts."""
    return [name for name in names() if read(name).design.adapter and "@" not in name]


def designs() -> str:
    """README's table of the five designs, from their recipes and what `count_parts` finds."""
    from trisense.model.parts import count_parts

    features = {"patches": "patches", "projected": "pooled and projected"}
    rows = [
        "| recipe | picture encoder, features | projector | language model | LoRA, rank 64, on | learns | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in published():
        design = read(name).design
        assert design.adapter and design.vision and design.pictures
        sense = design.senses["image"]
        parts = {part.name: part for part in count_parts(design, read(name).optimizer)}
        learns = parts["image projector"].parameters + parts["adapter"].parameters
        layer = f" of layer {sense['layer']}" if "layer" in sense else ""
        cells = (
            f"[`{name}`](docs/recipes/{name}.md)",
            f"{design.vision['pretrained']}, {features[sense['select']]}{layer}: "
            f"{design.pictures.tokens} x {sense['width']}",
            f"{sense['projector']}, {parts['image projector'].parameters / 1e6:.1f} M",
            f"{design.text['pretrained']}, {parts['language model'].parameters / 1e9:.2f} B",
            ", ".join(target.removesuffix("_proj") for target in design.adapter.targets),
            f"{learns / 1e6:.1f} M",
            f"{sum(part.size for part in parts.values()) / 1e9:.1f} GB",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def test_the_table_of_designs_is_what_the_recipes_say():
    shown = DESIGNS.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown and shown[0] == designs(), "python tests/test_docs.py --update"


def parts_of(name: str) -> str:
    """The table of a recipe's page."""
    from trisense.model.parts import count_parts

    rows = ["| part | parameters | MB | kept as |", "|---|---:|---:|---|"]
    counted = count_parts(read(name).design, read(name).optimizer)
    rows += [f"| {part.name} | {part.parameters:,} | {part.size / 1e6:,.0f} | {part.kept} |" for part in counted]
    rows.append(f"| all | | {sum(part.size for part in counted) / 1e6:,.0f} | |")
    return "\n".join(rows) + "\n"


def test_every_recipe_has_a_page():
    own = [name for name in names() if name != "spark" and "@" not in name]
    assert [page.stem for page in RECIPES] == sorted([*own, "twins"]), "the README is spark's"
    linked = re.findall(r"\(docs/recipes/([\w-]+)\.md\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {page.stem for page in RECIPES} <= set(linked)


@pytest.mark.parametrize("page", [page for page in RECIPES if page.stem != "twins"], ids=lambda page: page.stem)
def test_a_design_s_page_counts_its_parts(page: Path):
    shown = PARTS.search(page.read_text(encoding="utf-8"))
    assert shown and shown[0] == parts_of(page.stem), "python tests/test_docs.py --update"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_print_what_the_page_shows(page: Path):
    count = 0
    for block, printed in run(page):
        assert printed == (block["shown"] or ""), f"after {block['code']}"
        count += 1
    assert count > 8


def test_updating_rewrites_only_what_is_shown(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("a\n\n```python\nx = 1\n```\n\nb\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n\nc\n")
    assert update(page) == page.read_text().replace("2", "1")
    page.write_text("```python\nprint('new')\n```\n")
    assert update(page) == "```python\nprint('new')\n```\n\n```text\nnew\n```\n"


def parse(words: list[str]) -> list[click.Parameter]:
    """Parses a command line without running it; the arguments that it leaves open. Raises click's usage errors."""
    context = click.Context(commands, info_name="trisense")
    command: click.Command = commands
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context, command = click.Context(found, info_name=name, parent=context), found
    if isinstance(command, click.Group) and not words:
        return []
    try:
        command.parse_args(context, list(words))
    except click.MissingParameter as error:
        assert error.param
        return [error.param]
    except click.exceptions.Exit:  # --help and --version
        pass
    return []


def shell_lines(text: str) -> Iterator[str]:
    """Lines of the blocks that are not Python, continued lines joined, comments left out."""
    for block in FENCED.finditer(text):
        if block["language"] in ("", "sh"):
            yield from block["body"].replace("\\\n", " ").splitlines()


def commands_in(text: str) -> Iterator[tuple[list[str], bool]]:
    """The words of every `trisense ...` in a text, and whether it stands in a block, where it must be whole."""
    for line in shell_lines(text):
        if re.match(r"(\S*/)?trisense ", line):
            yield shlex.split(line, comments=True)[1:], True
    for inline in re.findall(r"`trisense ([^`\n]+)`", FENCED.sub("", text)):
        yield [word for word in shlex.split(inline) if word != "..."], False


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_exist_as_they_are_written(document: Path):
    for words, whole in commands_in(document.read_text(encoding="utf-8")):
        try:
            missing = parse(words)
        except click.UsageError as error:
            pytest.fail(f"{document.name}: trisense {shlex.join(words)}: {error.format_message()}")
        assert not (whole and missing), f"{document.name}: trisense {shlex.join(words)}: needs {missing}"
        if words[:2] == ["train", "spark"]:
            read("spark", [word for word in words if "=" in word])
        if whole and words[:2] == ["train", "stage"]:
            assert words[3] in read(words[2], [word for word in words if "=" in word]).stages
        if whole and words[:2] == ["train", "lr-find"]:
            assert words[2] in read(words[3]).stages


def test_the_reader_of_commands_sees_them():
    text = "`trisense ask`\n```\ntrisense ask --image a.png \\\n  'What is it?'  # why\n```\n"
    assert list(commands_in(text)) == [(["ask", "--image", "a.png", "What is it?"], True), (["ask"], False)]
    assert parse(["ask"]) and not parse(["ask", "Why?"])
    with pytest.raises(click.UsageError):
        parse(["ask", "--imgae", "a.png", "Why?"])
    with pytest.raises(click.UsageError):
        parse(["evaluate", "moon"])


def test_the_readme_names_the_two_commands():
    lines = list(shell_lines((ROOT / "README.md").read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {line.split()[1] for line in lines if line.startswith("make ")}
    assert {"ask", "test"} <= named <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(document: Path):
    text = FENCED.sub("", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            target, _, anchor = link.partition("#")
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name}: {link} leads nowhere"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{document.name}: {link} names no heading"


def table_of(document: Path, name: str) -> str:
    found = dict(TABLE.findall(document.read_text(encoding="utf-8")))
    assert name in found, f"{document.name} has no {name} table between its markers"
    return found[name].strip()


def test_readme_and_model_card_show_one_whole_table():
    from trisense.data.world.samples import GROUPS
    from trisense.measure.evaluate import COLUMNS

    table = table_of(ROOT / "README.md", "world")
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head == ["spark, exact answers", *(title for title, _, _ in COLUMNS)]
    assert [row[0] for row in rows] == list(GROUPS)
    for row in rows:
        for cell in row[1:]:
            assert re.fullmatch(r"\d+\.\d % \(\d+/\d+, \d+\.\d-\d+\.\d\)", cell), cell
    assert table_of(CARD, "world") == table


def test_readme_and_model_card_show_every_task_of_real_data():
    from trisense.data.real.mixture import TASKS
    from trisense.measure.real import MEASURES

    table = table_of(ROOT / "README.md", "real")
    _, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows] == [name for name in TASKS if name in {row[0] for row in rows}]
    assert len(rows) > 35, "all that dev has something of"
    for _, measure, value, _, _, change in rows:
        assert measure in MEASURES.values()
        assert re.fullmatch(r"\d+\.\d % \((\d+/|of )\d+, \d+\.\d-\d+\.\d\)", value), value
        assert re.fullmatch(r"([+-]\d+\.\d \(.*\))?", change), change
    assert table_of(CARD, "real") == table


def python_of_the_readme() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [block["body"] for block in FENCED.finditer(text) if block["language"] == "python"]


def printed_by(code: str) -> str:
    """What a block of the README prints, run at the repository's root."""
    printed = io.StringIO()
    with chdir(ROOT), redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    return printed.getvalue()


def test_make_ask_prints_what_the_readme_shows():
    variables = dict(re.findall(r"^([A-Z]+) := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    arguments = ["ask", "--verbose", *shlex.split(variables["EXAMPLE"]), variables["QUESTION"]]
    *lines, times = printed_by(f"from trisense.cli import main\nassert main({arguments}) == 0").splitlines(
        keepends=True
    )
    assert re.fullmatch(r"times: +\d+\.\d\d s to the first word, \d+\.\d\d s in all\n", times)
    assert f"```text\n{''.join(lines)}```\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_assistant_answers():
    (code,) = [body for body in python_of_the_readme() if "Assistant" in body]
    assert printed_by(code).strip()


@pytest.mark.slow
def test_the_readmes_client_talks_to_a_server():
    (code,) = [body for body in python_of_the_readme() if "OpenAI" in body]
    command = [sys.executable, "-m", "trisense", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert address and "http://localhost:8000" in code
            assert printed_by(code.replace("http://localhost:8000", address[0])).strip()
        finally:
            server.terminate()


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/test_docs.py --update")
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    for path in PAGES:
        path.write_text(update(path), encoding="utf-8")
    readme = ROOT / "README.md"
    readme.write_text(DESIGNS.sub(lambda _: designs(), readme.read_text(encoding="utf-8")), encoding="utf-8")
    for path in (path for path in RECIPES if path.stem != "twins"):
        counted = parts_of(path.stem)
        path.write_text(PARTS.sub(lambda _, found=counted: found, path.read_text(encoding="utf-8")), encoding="utf-8")
