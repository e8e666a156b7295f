"""What setup.cfg cannot say: YAML families are in the package, and the README has other links on a package index."""

import configparser
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
# `[text](path)`, and `![text](path)`, where the path is neither an address nor a heading of the same page.
RELATIVE = re.compile(r'(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)')


def long_description(readme: str, source: str | None) -> str:
    """The README for a package index, where paths in the repository lead nowhere.

    Args:
        readme (str): The README, in Markdown.
        source (str, optional): Address of the repository: the project URL named Source.

    Returns:
        str: The same with addresses for paths; without a repository's address the bare text of links, and no pictures.
    """

    def outside(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if source is None:
            return '' if picture else text
        return f'{picture}[{text}]({source.rstrip("/")}/{"raw" if picture else "blob"}/HEAD/{path})'

    return RELATIVE.sub(outside, readme)


def project_urls() -> dict[str, str]:
    """The project URLs of setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg', encoding='utf-8')
    lines = config['metadata'].get('project_urls', '').strip().splitlines()
    return {name.strip(): address.strip() for name, address in (line.split('=', 1) for line in lines)}


if __name__ == '__main__':
    setup(
        long_description=long_description(
            (ROOT / 'README.md').read_text(encoding='utf-8'), project_urls().get('Source')
        ),
        packages=[*find_packages(include=['composer_freezeout', 'composer_freezeout.*']), 'composer_freezeout.yamls'],
        package_dir={'composer_freezeout.yamls': 'yamls'},
    )
