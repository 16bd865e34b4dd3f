"""python -m inferplane"""

import sys

from inferplane.cli.main import main

sys.exit(main())
