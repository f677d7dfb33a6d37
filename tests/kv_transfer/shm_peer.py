"""A worker in a process of its own, for tests that stop or kill it: an end of links over shared memory.

Input, one JSON array a line: ["dial", host, secret in hex], ["listen"], ["send" or "receive", link, seq],
["fill", number] or ["hear", link]. Output: one line for each: an event, a ticket, or a number.
"""

import json
import sys

from fakes import WAIT_S, Ears, NumpyCache, make_group

from twinpool.kv_transfer.link import Ticket
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.pull_receiver import PullReceiver
from twinpool.kv_transfer.pull_sender import PullSender
from twinpool.kv_transfer.shm import ShmLinks

WHOLE = Span(0, 3, 0, 6)
BLOCKS = [9, 3, 4, 0, 7, 30]


def main(seed: int, digest: bool) -> None:
    cache = NumpyCache(seed=seed, shared=True)
    links = ShmLinks(cache, digest=digest, open_timeout_s=WAIT_S, chunk_timeout_s=WAIT_S)
    ends, ears = list[PullSender | PullReceiver](), list[Ears]()
    for line in sys.stdin:
        match json.loads(line):
            case ["dial", host, secret]:
                ears.append(Ears())
                ends.append(links.dial(Ticket(host, 0, bytes.fromhex(secret)), ears[-1]))
                say(ears[-1].next())
            case ["listen"]:
                ears.append(Ears())
                end, ticket = links.listen(ears[-1])
                ends.append(end)
                say((ticket.host, ticket.secret.hex()))
            case ["send", link, seq]:
                sender = ends[link]
                assert isinstance(sender, PullSender)
                sender.send(make_group(seq, WHOLE, BLOCKS))
                say(("sending", seq))
            case ["receive", link, seq]:
                receiver = ends[link]
                assert isinstance(receiver, PullReceiver)
                receiver.receive(make_group(seq, WHOLE, BLOCKS))
                say(("receiving", seq))
            case ["fill", number]:
                cache.pool[:] = number
                say(("filled", number))
            case ["hear", link]:
                say(ears[link].next())


def say(event: tuple[object, ...]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "digest")
