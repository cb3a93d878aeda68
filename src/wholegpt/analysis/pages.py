"""HTML pages from the templates of this package: self-contained, everything from outside escaped."""

from importlib import resources
from typing import Any

from wholegpt.analysis.charts import DARK, LIGHT, STYLE


def read(name: str) -> str:
    """Return the text of a file of this package."""
    return resources.files("wholegpt.analysis").joinpath(name).read_text(encoding="utf-8")


def render_page(name: str, **values: Any) -> str:
    """Return the page of the template ``name``. A missing value is an error."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(read),
    )
    colors = {"light": LIGHT, "dark": DARK, "chart_style": STYLE}
    return environment.get_template(name).render(**colors, **values)
