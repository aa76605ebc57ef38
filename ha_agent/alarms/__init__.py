"""What an administrator must hear of: alarms with raise and clear, told by mail and webhook; reports to a management
service. Nothing here decides anything of the pair, and nothing of it may hold the agent up.

    event -> meaning -> rules -> bulletin -> outbox -> courier -> deliver (a process of its own)
"""
