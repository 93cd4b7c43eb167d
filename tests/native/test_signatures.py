"""The table of stock operators' arguments is that of torch's own schemas."""

from __future__ import annotations

import re
from pathlib import Path

import executorch.exir.passes.dim_order_ops_registry  # noqa: F401  # its operators' schemas
import pytest
import torch

from model_export.operators import SCHEMAS

NATIVE = Path(__file__).parents[2] / "edge_runtime" / "native"
LETTERS = {
    "Tensor": "T",
    "Optional[Tensor]": "t",
    "number": "s",
    "Optional[number]": "q",
    "int": "i",
    "Optional[int]": "j",
    "bool": "b",
    "Optional[bool]": "c",
    "float": "d",
    "Optional[float]": "e",
    "List[int]": "I",
    "Optional[List[int]]": "J",
    "List[bool]": "B",
    "Optional[List[float]]": "D",
    "List[Tensor]": "L",
    "List[Optional[Tensor]]": "l",
}


def read_table(path: Path) -> dict[str, str]:
    return dict(re.findall(r'\{"([\w:.]+)", "(\w+)"', path.read_text()))


STOCK = read_table(NATIVE / "file" / "signatures.cc")
OWN = read_table(NATIVE / "operators" / "table.cc")


def schema_letters(name: str) -> str:
    operator, _, overload = name.partition(".")
    arguments = torch._C._get_schema(operator, overload).arguments
    return "".join("O" if a.is_out else LETTERS[str(a.type)] for a in arguments)


@pytest.mark.parametrize("table", [STOCK, OWN], ids=["stock", "own"])
def test_signatures_are_the_schemas(table: dict[str, str]) -> None:
    view = "executorch_prim::et_view.default"  # the runtime's own: torch does not know it
    names = table.keys() - {view}
    assert {name: schema_letters(name) for name in names} == {name: table[name] for name in names}


def test_the_stock_table_is_sorted() -> None:
    """It is searched by halves."""
    assert list(STOCK) == sorted(STOCK)


def test_every_operator_of_the_exporter_is_there() -> None:
    assert OWN.keys() == {f"flexmoe::{name}.out" for name in SCHEMAS}
