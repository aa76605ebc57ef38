"""The Standby's side: makes received changes durable and visible, whole and in order."""
