"""The mark that this node's programs may have written to a dataset: durable before its capture begins.

While it stands, no sink may touch the dataset before what the peer lacks has been saved (``keeper``). Each beginning
bears a name of its own, so that an archive tells for which one it was made. Blocking.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from dataclasses import asdict, dataclass

from ha_sync.core.position import Epoch
from ha_sync.database.durable import sync_folder, write_durably

NAME = "serving.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One beginning as Active."""

    id: str
    epoch: Epoch
    based: bool  # what stood there before was a copy of the other node's
    cluster: str = ""  # the pair that it belonged to; empty: none yet


def begin(place: str, epoch: Epoch, *, based: bool, cluster: str = "") -> Serving:
    """This node serves the dataset whose state is in ``place``. What was said before of its base stays."""
    before = load(place)
    based = before.based if before is not None else based
    serving = Serving(id=uuid.uuid4().hex, epoch=epoch, based=based, cluster=cluster)
    write_durably(os.path.join(place, NAME), json.dumps(asdict(serving)).encode())
    return serving


def load(place: str) -> Serving | None:
    """The mark, or None. One that cannot be read stands for a service of which nothing is known."""
    try:
        with open(os.path.join(place, NAME), "rb") as file:
            kept = json.loads(file.read())
        return Serving(
            id=str(kept["id"]),
            epoch=Epoch(int(kept["epoch"])),
            based=bool(kept["based"]),
            cluster=str(kept["cluster"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return Serving(id="unknown", epoch=Epoch(0), based=False)


def end(place: str) -> None:
    """What the peer lacked is safe, or there was nothing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(place, NAME))
        sync_folder(place)
