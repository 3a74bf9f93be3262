import torch

from driftrae_cli.flow.guidance import autoguidance, classifier_free, extrapolate


def _net(x, t_B, y_B):
    """A velocity that shows its arguments."""
    return x + 10 * t_B.view(-1, 1) + 100 * y_B.view(-1, 1)


def test_scale_one_is_the_strong_velocity_and_zero_the_weak():
    strong, weak = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    t_B = torch.tensor([0.5])
    assert extrapolate(strong, weak, t_B, 1.0, (0, 1)).equal(strong)
    assert extrapolate(strong, weak, t_B, 0.0, (0, 1)).equal(weak)
    assert extrapolate(strong, weak, t_B, 2.0, (0, 1)).item() == -1


def test_classifier_free_moves_away_from_the_null_label_inside_the_interval():
    x, t_B = torch.zeros(2, 1), torch.tensor([0.5, 0.9])
    velocity = classifier_free(_net, torch.tensor([1, 2]), 7, 3.0, (0.0, 0.6))
    # inside: null + 3 * (label - null); outside: the label's own
    assert velocity(x, t_B).flatten().tolist() == [5 + 700 - 1800, 9 + 200]


def test_classifier_free_evaluates_once_with_twice_the_batch():
    sizes = []

    def net(x, t_B, y_B):
        sizes.append((len(x), len(t_B), y_B.tolist()))
        return x

    classifier_free(net, torch.tensor([1, 2]), 7, 2.0)(torch.zeros(2, 1), torch.zeros(2))
    assert sizes == [(4, 4, [1, 2, 7, 7])]


def test_autoguidance_moves_away_from_the_weak_network():
    velocity = autoguidance(lambda x, t: x + 4, lambda x, t: x + 1, 2.0)
    assert velocity(torch.zeros(1, 1), torch.zeros(1)).item() == 7


def test_outside_the_interval_the_weak_velocity_is_not_evaluated():
    def weak(x, t_B):
        raise AssertionError

    x, outside, one_inside = torch.zeros(2, 1), torch.tensor([0.1, 0.9]), torch.tensor([0.1, 0.5])
    velocity = autoguidance(lambda x, t: x + 4, weak, 2.0, (0.5, 0.6))
    assert velocity(x, outside).flatten().tolist() == [4, 4]
    velocity = autoguidance(lambda x, t: x + 4, lambda x, t: x + 1, 2.0, (0.5, 0.6))
    assert velocity(x, one_inside).flatten().tolist() == [4, 7]
    labels = []

    def net(x, t_B, y_B):
        labels.append(y_B.tolist())
        return x

    velocity = classifier_free(net, torch.tensor([1, 2]), 7, 2.0, (0.5, 0.6))
    velocity(x, outside)
    velocity(x, one_inside)
    assert labels == [[1, 2], [1, 2, 7, 7]]
