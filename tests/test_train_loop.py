"""The loop of everything trained here: killed at any step it ends with the same bits, and who saves, saves whole."""

import pytest
import torch

from vtc.eval.train.loop import Training, cosine, warm_then_linear

STEPS = 4


class Line(Training):
    """Draws a line through points, by Adam, whose moments a checkpoint must hold."""

    save_seconds = 0.0

    def __init__(self, dies_at: int | None = None):
        self.line = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(self.line.weight)
        torch.nn.init.zeros_(self.line.bias)
        self.optimizer = torch.optim.Adam(self.line.parameters(), lr=0.1)
        self.dies_at, self.noted = dies_at, []
        super().__init__("line", STEPS, {"line": self.line, "optimizer": self.optimizer})

    def learn(self):
        if self.step == self.dies_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(self.step))
        loss = (self.line(x) - 3 * x - 1).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def note(self, report):
        self.noted.append((self.step, report))

    def progress(self):
        return f"loss {self.noted[-1][1]:.2f}"


@pytest.mark.parametrize("dies_at", range(1, STEPS))
def test_a_killed_run_ends_with_the_same_bits(dies_at, tmp_path, capsys):
    once, killed, again = Line(), Line(dies_at), Line()
    once.to_the_end(tmp_path / "once.pt")
    with pytest.raises(KeyboardInterrupt):
        killed.to_the_end(tmp_path / "twice.pt")
    (tmp_path / "twice.pt.tmp").write_bytes(b"torn")
    again.to_the_end(tmp_path / "twice.pt")
    assert f"line: {dies_at} of {STEPS} steps are in" in capsys.readouterr().err
    assert killed.noted + again.noted == once.noted and [step for step, _ in once.noted] == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(once.line.parameters(), again.line.parameters()))
    assert torch.load(tmp_path / "once.pt")["step"] == STEPS


def test_there_is_a_checkpoint_after_the_first_step_and_the_last(tmp_path, capsys):
    run, saved = Line(), []
    run.save_seconds = 1e9
    run.save = lambda file: saved.append(run.step)
    run.to_the_end(tmp_path / "file.pt")
    assert saved == [1, STEPS]
    assert "line: step 4 of 4, loss" in capsys.readouterr().err


def test_a_process_that_shares_anothers_work_writes_and_says_nothing(tmp_path, capsys):
    run = Line()
    run.to_the_end(tmp_path / "file.pt", saves=False)
    assert run.step == STEPS and not list(tmp_path.iterdir()) and not capsys.readouterr().err


def test_rates_begin_and_end_where_they_should():
    assert [round(cosine(step, 3, 0.2, 0.1), 6) for step in range(3)] == [0.2, 0.15, 0.1]
    assert cosine(0, 1, 0.2, 0.1) == 0.2
    assert [warm_then_linear(step, 100, 4, 0.0) for step in (0, 1, 3, 99)] == [0.25, 0.5, 1.0, 1.0]
    assert [warm_then_linear(step, 100, 4, 0.5) for step in (49, 75, 99)] == [1.0, 0.5, 0.02]
