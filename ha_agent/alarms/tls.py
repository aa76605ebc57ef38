"""Whom a delivery trusts. Only for ``deliver`` and what it loads."""

from __future__ import annotations

import ssl

from ha_agent.settings.values import Target


def context_of(target: Target) -> ssl.SSLContext:
    """The system's authorities, or the one that the settings name, or, where they say so, anybody."""
    context = ssl.create_default_context(cafile=target.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not target.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
