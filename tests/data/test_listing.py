"""The compact list of a source's pictures."""

import torch

from driftrae_cli.data.listing import Names, first_of_each


def test_names_come_back_as_they_were() -> None:
    names = ["a/b.jpg", "", "ü.png", "\udce9.png", "last"]
    kept = Names(names)
    assert [kept[row] for row in range(len(kept))] == names


def test_the_first_of_each_class_are_those_of_a_loop() -> None:
    labels = torch.randint(50, (20_000,), generator=torch.Generator().manual_seed(0))
    seen = [0] * 50
    wanted = []
    for row, label in enumerate(labels.tolist()):
        if seen[label] < 7:
            wanted.append(row)
        seen[label] += 1
    assert first_of_each(labels, 7).tolist() == wanted
    assert first_of_each(labels, None).tolist() == list(range(20_000))
