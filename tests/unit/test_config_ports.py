"""``[metrics]`` and ``[api]``: off unless they say where, and never half configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from ha_sync.config import ApiSettings, MetricsSettings, Settings, load
from ha_sync.errors import ConfigFault

FILES = 'certificate = "/a/api.pem"\nkey = "/a/api.key"\nclient_authority = "/a/ca.pem"\n'


def read(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "sync.toml"
    file.write_text(text)
    return load(str(file))


@pytest.mark.req("R30", "R33")
def test_both_are_off_where_nothing_is_said(tmp_path: Path) -> None:
    settings = read(tmp_path, "[metrics]\n[api]\n")
    assert (settings.metrics, settings.api) == (MetricsSettings(), ApiSettings())
    assert not settings.metrics.listen + settings.api.listen


@pytest.mark.req("R30", "R33")
def test_what_is_stated_arrives(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        f'[metrics]\nlisten = ["127.0.0.1:9528", "[::1]:9528"]\n'
        f'[api]\nlisten = "192.0.2.1:9529"\nclients = ["ops", "console"]\n{FILES}',
    )
    assert settings.metrics.listen == ("127.0.0.1:9528", "[::1]:9528")
    assert settings.api == ApiSettings(
        listen=("192.0.2.1:9529",),
        certificate="/a/api.pem",
        key="/a/api.key",
        client_authority="/a/ca.pem",
        clients=("ops", "console"),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[metrics]\nlisten = "9528"\n', "metrics.listen"),
        ("[metrics]\nenabled = true\n", "metrics.enabled = true: unknown key"),
        ('[api]\nlisten = "127.0.0.1:9529"\n', "api.client_authority: is missing"),
        (f"[api]\n{FILES}", "api.key = "),
        ('[api]\nclients = ["ops"]\n', "says nothing without `listen`"),
        (f'[api]\nlisten = "127.0.0.1:9529"\n{FILES}clients = [""]\n', "must have 1 to 64 characters"),
        ('[api]\nlisten = "127.0.0.1:9529"\nkey = "api.key"\n', "must be an absolute path"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigFault) as caught:
        read(tmp_path, text)
    assert told in "\n".join(caught.value.faults)
