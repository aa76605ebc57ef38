"""The one address that phones and administrators use: lease, probe, announcement."""
