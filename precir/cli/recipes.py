"""`precir recipes`: what there is to choose from."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table

from precir.recipe import RECIPES, Recipe
from precir.report import recipe_in_words


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("recipes", parents=[common], help="the known recipes")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, console: Console) -> int:
    for recipe in RECIPES.values():
        console.print(f"[bold]{recipe.name}[/]  {recipe_in_words(recipe)}", highlight=False)
        console.print(_fields(recipe))
        console.print()
    console.print("[dim]Change one field: precir.recipe('fp8').replace(gradient=...)[/]")
    return 0


def _fields(recipe: Recipe) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name != "name" and value not in (None, ()):
            table.add_row(f"  [dim]{field.name}[/]", f"{value}")
    return table
