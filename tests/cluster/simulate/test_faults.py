"""Faults as a command line says them."""

import pytest

from twinpool.cluster.simulate.faults import parse_faults
from twinpool.core.errors import SpecError
from twinpool.simulator.scenario import Fault, FaultKind

WORKERS = ("decode-0", "decode-1", "prefill-0")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("crash decode-1 at 30", Fault(FaultKind.CRASH, "decode-1", 30.0)),
        ("drain decode-0 at 1.5 for 10", Fault(FaultKind.DRAIN, "decode-0", 1.5, 10.0)),
        ("slow prefill-0 at 0 by 3 for 20", Fault(FaultKind.SLOW, "prefill-0", 0.0, 20.0, 3.0)),
        ("  slow   prefill-0 at 5 ", Fault(FaultKind.SLOW, "prefill-0", 5.0)),
    ],
)
def test_a_fault_reads_as_it_is_said(text: str, fault: Fault):
    assert parse_faults([text], WORKERS) == (fault,)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must read: KIND WORKER at SECONDS"),
        ("crash decode-1", "must read"),
        ("crash decode-1 after 30", "must read"),
        ("crash decode-1 at 30 for", "must read"),
        ("melt decode-1 at 30", "'melt' is not one of: crash, drain, slow"),
        ("crash decode-9 at 30", "no worker 'decode-9'; there are: decode-0, decode-1, prefill-0"),
        ("crash decode-1 at soon", "'soon' must be a number"),
        ("crash decode-1 at -1", "'-1' must be a number"),
        ("crash decode-1 at nan", "'nan' must be a number from 0 to 1e+09"),
        ("crash decode-1 at 2e9", "'2e9' must be a number from 0 to 1e+09"),
        ("crash decode-1 at 30 for 5", "crash takes nothing"),
        ("drain decode-1 at 30 by 2", "drain takes for"),
        ("slow decode-1 at 30 by 0", "'0' must be a number over 0 and at most 1e+09"),
        ("slow decode-1 at 30 by 2 by 3", "each once"),
    ],
)
def test_what_is_no_fault_is_refused_with_its_words(text: str, told: str):
    with pytest.raises(SpecError) as caught:
        parse_faults([text], WORKERS)
    assert told in str(caught.value)
    assert str(caught.value).startswith("--fault: ")


def test_every_wrong_fault_is_told_on_a_line_of_its_own():
    with pytest.raises(SpecError) as caught:
        parse_faults(["melt decode-1 at 3", "crash decode-1 at 3", "crash x at 3"], WORKERS)
    assert [line[:15] for line in str(caught.value).splitlines()] == ["--fault: 'melt'", "--fault: there "]


def test_many_workers_are_not_all_listed():
    with pytest.raises(SpecError, match="and 92 more"):
        parse_faults(["crash x at 1"], [f"w{number}" for number in range(100)])
