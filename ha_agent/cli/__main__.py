"""``python -m ha_agent.cli``."""

from ha_agent.cli.main import main

main()
