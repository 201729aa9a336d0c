"""HTML pages from the templates of this folder: escaped, in one style, nothing requested from outside."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from netloom.durations import duration
from netloom.report import wording
from netloom.report.fonts import FONT_STACK


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this folder, every value escaped as it is written.

    Args:
        template: File name, such as `report.html`; it extends `page.html`.
        **values: What the template shows.
    """
    page = _environment().get_template(template).render(font_stack=Markup(FONT_STACK), **values)
    # File names that are not Unicode reach here as lone surrogates, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("netloom", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        wording.percent,
        wording.certainty,
        wording.percent_interval,
        wording.number_interval,
        duration,
        wording.counted,
        wording.sample_size,
    ):
        environment.filters[function.__name__] = function
    return environment
