"""What messages are made of."""

from driftrae_cli.errors import printable, some


def test_long_lists_are_cut_short() -> None:
    assert some(map(str, range(3))) == "0, 1, 2"
    assert some(map(str, range(30)), 2) == "0, 1 and 28 more"


def test_any_name_on_disk_can_be_shown() -> None:
    assert printable("ü\udce9.png") == some(["ü\udce9.png"]) == r"ü\udce9.png"
