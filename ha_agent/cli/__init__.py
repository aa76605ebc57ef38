"""``ha-agent``: the daemon that decides the role of this node. What an operator asks of it is ``ha-sync``'s."""
