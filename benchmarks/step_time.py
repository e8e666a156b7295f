"""``composer-freezeout step-time``, under the name that committed records give it."""

import sys

from composer_freezeout.cli import main

if __name__ == '__main__':
    sys.exit(main(['step-time', *sys.argv[1:]]))
