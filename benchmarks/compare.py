"""``composer-freezeout compare``, under the name that committed records give it."""

import sys

from composer_freezeout.cli import main

if __name__ == '__main__':
    sys.exit(main(['compare', *sys.argv[1:]]))
