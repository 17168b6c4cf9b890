from app import Order, app, customer, stock

from penstock.testing import Harness


def test_what_is_left_is_sold_and_no_more() -> None:
    with Harness(app) as h:
        h.feed("orders", [Order("1", "ada", "lamp", 8), Order("2", "grace", "lamp", 8)])

        assert h.state(stock, "lamp").left == 2
        assert h.egress("orders/invoices") == [{"order": "1", "customer": "ada", "product": "lamp"}]
        assert h.state(customer, "grace").refused == 1
