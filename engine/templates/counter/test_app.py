from app import Visit, app, page

from penstock.testing import Harness


def test_every_page_counts_its_own_visits() -> None:
    with Harness(app) as h:
        assert h.call(page, "home", Visit("ada")) == 1
        assert h.call(page, "home", Visit("grace")) == 2
        assert h.call(page, "about", Visit("ada")) == 1
        assert h.state(page, "home").last_visitor == "grace"
