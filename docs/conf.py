"""How Sphinx builds these pages: ``make docs``."""

import re
from pathlib import Path

from sphinx.application import Sphinx

import composer_freezeout

ROOT = Path(__file__).parent.parent

project = 'composer_freezeout'
author = 'The composer_freezeout authors'
copyright = author
release = version = composer_freezeout.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'sphinxcontrib.mermaid',
]
exclude_patterns = ['_build']
html_theme = 'furo'
html_title = f'composer_freezeout {release}'

# --- Markdown

myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3
myst_fence_as_directive = ['mermaid']  # which GitHub draws, too
copybutton_exclude = '.linenos, .gp, .go'

# --- docstrings

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # docstrings tell them
# What the rest of the package is not told about in its pages has no page to point to, and neither has what is others'.
nitpick_ignore_regex = [('py:.*', r'(?!composer_freezeout\.(FreezeOut|apply_freezeout|LayerFreezer)).*')]

# --- links

linkcheck_retries = 2


def _link_to_files(app: Sphinx, docname: str, content: list[str]) -> None:
    """Makes a link to a file of the repository, which has no page here, one that downloads it."""

    def download(link: re.Match[str]) -> str:
        text, path = link.groups()
        # Of a report in Markdown the HTML beside it, which has its plots inside.
        for found in (path.removesuffix('.md') + '.html', path):
            if (ROOT / 'docs' / found).is_file():
                return f'{{download}}`{text} <{found}>`'
        return link.group()

    content[0] = re.sub(r'(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)\)', download, content[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect('source-read', _link_to_files)
