"""A source worker in a process of its own, for tests that kill it: dials the tickets it reads, sends what it is told.

Input, one JSON array a line: ["dial", host, port, secret in hex] or ["send", link, seq]. Output: one line an event.
"""

import json
import sys

from fakes import Ears, NumpyCache, make_group

from twinpool.kv_transfer.gloo import GlooLinks
from twinpool.kv_transfer.link import SendLink, Ticket
from twinpool.kv_transfer.plan import Span


def main() -> None:
    links, senders, ears = GlooLinks(NumpyCache(seed=1), "127.0.0.1"), list[SendLink](), list[Ears]()
    for line in sys.stdin:
        match json.loads(line):
            case ["dial", host, port, secret]:
                ears.append(Ears())
                senders.append(links.dial(Ticket(host, port, bytes.fromhex(secret)), ears[-1]))
                say(ears[-1].next())
            case ["send", link, seq]:
                senders[link].send(make_group(seq, Span(0, 3, 0, 6), [9, 3, 4, 0, 7, 30]))
                say(ears[link].next())


def say(event: tuple[object, ...]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
