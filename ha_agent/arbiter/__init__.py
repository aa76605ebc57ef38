"""The arbiter: decides which node is Active. Pure; the driver performs what it says.

``begin`` makes the first state, ``step`` the next one, ``beat_of`` says what to send to the peer. Time comes in with
every event: monotonic seconds of this node, never the wall clock. docs/arbiter.md shows the table as a picture.
"""
