from etils import epath

from lawa_jax.training.log import JsonLog, read_log


def test_events_come_back_in_order(tmp_path):
    log = JsonLog(epath.Path(tmp_path) / "log.jsonl")
    log.write("epoch", epoch=1, loss=0.1)
    log.write("lawa", end=1)
    log.write("epoch", epoch=2, loss=float("nan"))
    assert [e["epoch"] for e in log.events("epoch")] == [1, 2]


def test_a_repeated_event_replaces_the_first(tmp_path):
    log = JsonLog(epath.Path(tmp_path) / "log.jsonl")
    log.write("epoch", epoch=1, loss=0.1)
    log.write("epoch", epoch=1, loss=0.2)
    assert log.by("epoch", "epoch")[1]["loss"] == 0.2
    log.write("lawa", k=5, end=3)
    assert log.by("lawa", "k", "end").keys() == {(5, 3)}


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    path = epath.Path(tmp_path) / "log.jsonl"
    path.write_text('{"event": "epoch", "epoch": 1}\n{"event": "ep')
    assert len(list(read_log(path))) == 1
    JsonLog(path).write("epoch", epoch=2)
    assert [e["epoch"] for e in read_log(path)] == [1, 2]
    assert path.read_text().count("\n") == 2


def test_no_log_is_an_empty_one(tmp_path):
    assert list(read_log(epath.Path(tmp_path) / "none")) == []
