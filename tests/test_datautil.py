"""The page that maps the original's tools names what is there: fields, rules, columns, modules."""

import importlib.util
import pathlib
import re

import configs.data
from data_pipelines.stages import ledger, plan, rules

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/datautil.md").read_text()


def test_every_field_of_the_page_is_one_of_the_config():
    fields = set(plan._leaves(configs.data.base()))
    groups = {field.rpartition(".")[0] for field in fields}
    named = set(re.findall(r"config\.([a-z_]+(?:\.[a-z_]+)*)", PAGE)) - {"x"}
    assert len(named) > 20 and named <= fields | groups, named - fields - groups


def test_every_rule_of_the_page_can_be_read():
    lists = re.findall(r"\brules? ((?:`[^`\n]+`(?:, |; or )?)+)", PAGE)
    written = re.findall("`([^`]+)`", " ".join(lists))
    listed = re.search(r'config\.rules="([^"]*)"', PAGE).group(1).split("; ")
    assert len(written) > 5
    rules.parse([*written, *listed])


def test_every_column_of_the_page_is_one_of_the_ledger():
    table = PAGE.partition("## What is measured")[2]
    columns = re.findall(r"^\| `([a-z_]+)` \|", table, re.M)
    assert {*ledger.SCORES, "camera", "phash"} == {*columns}


def test_every_module_and_file_of_the_page_is_there():
    for name in set(re.findall(r"python -m ([a-z_.]+)", PAGE)):
        assert importlib.util.find_spec(name), name
    for link in re.findall(r"\]\(\.\./([^)]*)\)", PAGE):
        assert (ROOT / link).exists(), link
    for function in re.findall(r"^\| `[a-z_]+` \|.*\| `([a-z_]+\.[A-Za-z_]+)` \|$", PAGE, re.M):
        module, _, name = function.partition(".")
        found = importlib.import_module(f"data_pipelines.stages.{module}")
        assert hasattr(found, name), function
