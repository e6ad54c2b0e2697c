"""How things look: escaping, highlighted tokens, figures, tables."""

from seamark.show.html import cut, render, visible
from seamark.show.tables import ResultRow, print_result_table, rich_result_table, rich_table
from seamark.show.tokens import highlight

__all__ = [
    "ResultRow",
    "cut",
    "highlight",
    "print_result_table",
    "render",
    "rich_result_table",
    "rich_table",
    "visible",
]
