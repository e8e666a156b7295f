"""``python -m composer_freezeout.step_time``: what a launcher starts in each process."""

import sys

from composer_freezeout.step_time.command import main

if __name__ == '__main__':
    sys.exit(main())
