"""``python -m composer_freezeout.run FILE [key=value …]``."""

import sys

from composer_freezeout.run.command import main

if __name__ == '__main__':
    sys.exit(main())
