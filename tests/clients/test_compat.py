"""The compatibility page says what the running service does."""

from tests.bench import compat
from tests.clients.stage import Stage


def test_every_method_works_and_the_page_says_so(stage: Stage) -> None:
    found = compat.measure(stage)
    print(compat.score(found))
    assert {name: one.problem for name, one in found.items() if one.problem is not None} == {}
    assert compat.PAGE.read_text(encoding="utf-8") == compat.page(found), "run `make compat`"
