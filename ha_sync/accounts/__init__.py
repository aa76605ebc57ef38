"""Who may administer the pair: names and scrypt hashes, in one file that the Active's replaces on the Standby."""

from ha_sync.accounts.secret import make_secret, matches, problem_of
from ha_sync.accounts.store import Account, Accounts, AccountStore

__all__ = ["Account", "AccountStore", "Accounts", "make_secret", "matches", "problem_of"]
