"""``python -m ha_sync.backup.package``: see ``child``."""

import sys

from ha_sync.backup.package.child import main

sys.exit(main())
