"""Markdown and HTML: the templates, and what is escaped in them."""

import re
from collections.abc import Iterable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as markup_escape

from composer_freezeout.compare.report.tables import Link

__all__ = ['HTML', 'MARKDOWN', 'templates']

MARKDOWN, HTML = 'report.md', 'report.html'


def templates() -> Environment:
    """The templates of a report; HTML is escaped, Markdown by the filter ``md``."""
    environment = Environment(
        loader=PackageLoader('composer_freezeout.compare.report'),
        autoescape=lambda name: name is not None and name.startswith(HTML),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters['md'] = _markdown
    environment.filters['indented'] = _indented
    environment.filters['breakable'] = _breakable
    environment.tests['link'] = lambda value: isinstance(value, Link)
    return environment


def _markdown(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    text = ' '.join(text.split())
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    # Within a word an underscore means nothing.
    return re.sub(r'[\\`*\[\]#|~!$]|(?<!\w)_|_(?!\w)', r'\\\g<0>', text)


def _breakable(text: str) -> Markup:
    """Text that may be broken after its underscores."""
    return markup_escape(text).replace('_', Markup('_<wbr>'))


def _indented(lines: str | Iterable[str]) -> str:
    """A block of code, whatever stands in it."""
    lines = lines.splitlines() if isinstance(lines, str) else lines
    return '\n'.join(f'    {line}' for line in lines)
