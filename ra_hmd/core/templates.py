"""Jinja environments of the packages that write pages."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment(package: str, *, autoescape: bool = True, **options: Any) -> Environment:
    """Return an environment for the templates of a package, in which an undefined name is an error.

    Args:
        package: Package whose folder `templates` is read.
        autoescape: Escape values for HTML.
        options: Further arguments of `jinja2.Environment`.
    """
    return Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=autoescape,  # noqa: S701 - off only where a page is Markdown and escaped as such
        **options,
    )
