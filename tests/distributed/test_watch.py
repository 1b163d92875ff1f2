"""Signs of life: who is found dead, and that all hear of it."""

import threading

from lawa_jax.distributed.watch import Watch


class Service:
    """Values of the coordination service, in memory."""

    def __init__(self):
        self.values, self.gone = {}, False

    def _alive(self):
        if self.gone:
            raise RuntimeError("UNAVAILABLE")

    def key_value_set(self, key, value, allow_overwrite=False):
        self._alive()
        self.values[key] = value

    def key_value_try_get(self, key):
        self._alive()
        if key not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[key]

    def key_value_dir_get(self, folder):
        self._alive()
        return [(k, v) for k, v in self.values.items() if k.startswith(folder)]


class End:
    """Takes the message a watch would end its process with."""

    def __init__(self):
        self.event, self.reason = threading.Event(), None

    def __call__(self, reason):
        self.reason = reason
        self.event.set()


def watch(service, index, count, timeout=0.2):
    end = End()
    return Watch(service, index, count, timeout=timeout, end=end), end


def test_a_process_that_never_beats_is_named_to_all():
    service = Service()
    _, zero = watch(service, 0, 3)
    _, one = watch(service, 1, 3)
    assert zero.event.wait(30)
    assert one.event.wait(30)
    assert zero.reason == one.reason
    assert "process 2 (never heard of) has given no sign of life for 0.2 s" in zero.reason


def test_a_reason_given_is_the_one_heard():
    service = Service()
    one, _ = watch(service, 1, 2, timeout=60)
    _, zero = watch(service, 0, 2, timeout=60)
    one.tell("the disk is full")
    assert zero.event.wait(30)
    assert zero.reason.startswith("process 1 (")
    assert zero.reason.endswith("stopped: the disk is full")


def test_the_end_of_the_coordinator_is_noticed():
    service = Service()
    _, one = watch(service, 1, 2)
    service.gone = True
    assert one.event.wait(30)
    assert one.reason == "process 0, which coordinates the others, is gone"


def test_parting_is_no_death():
    service = Service()
    one, end = watch(service, 1, 2)
    zero, mine = watch(service, 0, 2)
    one.stop()
    assert not mine.event.wait(1)
    zero.stop()
    assert end.reason is None
