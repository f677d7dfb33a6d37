from twinpool.kv_transfer.handoff import Abort, Committed, Grant, Seal, Stopped, answer_unknown


def test_a_worker_without_the_handoff_answers_so_that_nobody_waits():
    stopped = Stopped("r", 3)
    assert answer_unknown(Abort("r", 3, "why")) == (stopped,)
    assert answer_unknown(Grant("r", 3, 0, 1)) == (Abort("r", 3, "unknown handoff"), stopped)
    assert answer_unknown(Seal("r", 3, 1, 1, 1, 0, 0, 0, 0)) == (Abort("r", 3, "unknown handoff"),)
    assert answer_unknown(stopped) == answer_unknown(Committed("r", 3)) == ()
