"""python -m lazydiff"""

import sys

try:
    from .cli import main

    sys.exit(main())
except KeyboardInterrupt:  # while modules are still being imported
    print("\nstopped", file=sys.stderr)
    sys.exit(130)
