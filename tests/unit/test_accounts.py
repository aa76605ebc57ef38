"""Accounts: scrypt with its parameters beside it, versions that grow, a file that is taken over whole."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ha_sync.accounts import Account, AccountStore, make_secret, matches, problem_of
from ha_sync.errors import ConfigFault, OperatorNeeded, ProtocolFault, Refused

SECRET = make_secret("correct horse")


def account(name: str = "admin", secret: str = SECRET) -> Account:
    return Account(name=name, secret=secret, changed_unix_s=1.0)


@pytest.mark.req("R4")
def test_only_the_password_matches_and_no_two_secrets_are_alike() -> None:
    assert SECRET.startswith("scrypt$15$8$3$")
    assert matches(SECRET, "correct horse")
    assert not matches(SECRET, "correct horsf")
    assert not matches(SECRET, "")
    assert make_secret("correct horse") != SECRET
    assert "horse" not in SECRET


@pytest.mark.parametrize(
    "secret",
    ["", "scrypt$15$8$3$x$y", SECRET.replace("$15$", "$30$"), SECRET + "!", "plain"],
    ids=["empty", "no base64", "a cost that is too high", "a sign too many", "plain"],
)
def test_a_text_that_is_no_secret_matches_nothing(secret: str) -> None:
    assert problem_of(secret)
    assert not matches(secret, "correct horse")


@pytest.mark.parametrize("password", ["short", "x" * 1025])
def test_a_password_of_no_use_is_refused(password: str) -> None:
    with pytest.raises(ValueError, match="8 to 1024"):
        make_secret(password)


@pytest.mark.req("R4")
def test_each_change_has_a_higher_version_and_a_new_epoch_begins_anew(tmp_path: Path) -> None:
    store = AccountStore(str(tmp_path))
    assert store.put(account(), epoch=4)
    assert store.read().version == "4.1"
    assert not store.put(account(), epoch=4)
    assert store.put(account("second"), epoch=6)
    assert store.read().version == "6.1"
    store.remove("admin", epoch=6)
    assert (store.read().version, [one.name for one in store.read().accounts]) == ("6.2", ["second"])
    assert stat.S_IMODE((tmp_path / "accounts.json").stat().st_mode) == 0o600


@pytest.mark.req("R4")
def test_the_actives_accounts_replace_ones_own_whatever_their_version(tmp_path: Path) -> None:
    active, standby = AccountStore(str(tmp_path / "a")), AccountStore(str(tmp_path / "b"))
    active.put(account(), epoch=2)
    standby.put(account("mine"), epoch=9)
    assert standby.replace(active.read().content()) == active.read()
    assert standby.read() == active.read()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 1, "version": "x", "accounts": []}', b"x" * 70000])
def test_what_is_no_file_of_accounts_is_refused_and_the_old_one_stays(content: bytes, tmp_path: Path) -> None:
    store = AccountStore(str(tmp_path))
    store.put(account(), epoch=2)
    with pytest.raises(ProtocolFault):
        store.replace(content)
    assert len(store.read().accounts) == 1


def test_wrong_names_and_secrets_are_refused(tmp_path: Path) -> None:
    store = AccountStore(str(tmp_path))
    for wrong in (account("../x"), account(""), account(secret="plain")):
        with pytest.raises(ConfigFault):
            store.put(wrong, epoch=1)
    with pytest.raises(Refused, match="known: none"):
        store.remove("nobody", epoch=1)


def test_a_damaged_file_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "accounts.json").write_text("{")
    with pytest.raises(OperatorNeeded, match="remove the file"):
        AccountStore(str(tmp_path)).read()
