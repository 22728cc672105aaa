"""The rounds of `vtc bench serve`.

Two servers are up at once, of which one works at a time. A round sends the same requests to one and then to the other,
and the next round begins with the other; ratios are taken within a round, so that what else the machine does falls on
both sides. No picture is shown twice to a server, so that neither its prefix cache nor that of its encoder helps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

from vtc.eval.cli.errors import InputError
from vtc.eval.results.results import Spread, spread
from vtc.serve.bench.load import Answer, ServerError, burst, rate, request
from vtc.serve.bench.server import Server

#: What stands for a warm-up in the seed of a picture.
_WARM_UP = 10**6


class SideResult(TypedDict):
    """One server under one number of clients.

    Attributes:
        setting: its spec; "none" is the stock engine.
        clients: that sent at once.
        requests: of all rounds.
        prompt_tokens: of a request, as the server counted them; the mean, should pictures differ.
        output_tokens: of a request.
        requests_per_s: over rounds.
        first_token_ms: over requests, from sending the picture on.
        token_ms: over requests, of each token after the first; None where there is one only.
        requests_speedup, first_token_speedup, token_speedup: over rounds, how many times better than the stock engine
            in the same round: its median time over ours, our rate over its. None of the stock engine.
    """

    setting: str
    clients: int
    requests: int
    prompt_tokens: float
    output_tokens: int
    requests_per_s: Spread
    first_token_ms: Spread
    token_ms: Spread | None
    requests_speedup: Spread | None
    first_token_speedup: Spread | None
    token_speedup: Spread | None


@dataclass(frozen=True)
class Load:
    """What each server is asked.

    Attributes:
        model: as the servers call it.
        pixels: side of the pictures.
        rounds: that are counted.
        requests: of each client in a round.
        output_tokens: of each answer.
    """

    model: str
    pixels: int
    rounds: int
    requests: int
    output_tokens: int

    def bodies(self, clients: int, round_: int) -> list[list[bytes]]:
        """For each client, its requests of a round."""
        return [
            [self._body(clients, round_, client, turn) for turn in range(self.requests)] for client in range(clients)
        ]

    def warm_up(self, clients: int) -> list[list[bytes]]:
        """For each client, one request."""
        return [[self._body(clients, _WARM_UP, client, 0)] for client in range(clients)]

    def _body(self, *seed: int) -> bytes:
        return request(self.model, seed, self.pixels, self.output_tokens)


def measure(servers: Sequence[Server], load: Load, clients: int) -> list[SideResult]:
    """Both servers under one number of clients.

    Args:
        servers: the stock engine, and the one that prunes; their names are their settings.
        load: what they are asked.
        clients: that send at once.

    Raises:
        InputError: a server ended or refused a request, or the second one did not prune.
    """
    stock = servers[0]
    for server in servers:
        _burst(server, load.warm_up(clients))
    done: dict[Server, list[list[Answer]]] = {server: [] for server in servers}
    for round_ in range(load.rounds):
        bodies = load.bodies(clients, round_)
        for server in servers if round_ % 2 == 0 else reversed(servers):
            done[server].append(_burst(server, bodies))
    results = [_result(server.name, clients, done[server], done[stock]) for server in servers]
    check(results[0], results[1], load.output_tokens)
    return results


def check(stock: SideResult, pruned: SideResult, output_tokens: int) -> None:
    """Refuse figures that compare something else.

    Raises:
        InputError: prompts did not get shorter, or answers have another length.
    """
    if pruned["prompt_tokens"] >= stock["prompt_tokens"]:
        raise InputError(
            f"argument --compress: {pruned['setting']!r} left {pruned['prompt_tokens']:g} tokens of a prompt of "
            f"{stock['prompt_tokens']:g}, so that nothing was pruned; give a smaller keep, or see what the server says"
        )
    for each in (stock, pruned):
        if each["output_tokens"] != output_tokens:
            raise InputError(
                f"argument --output-tokens: the server {each['setting']} answered with {each['output_tokens']} tokens, "
                f"not {output_tokens}; give fewer, for which there is room"
            )


def _burst(server: Server, bodies: Sequence[Sequence[bytes]]) -> list[Answer]:
    try:
        return burst(server.port, bodies)
    except (ServerError, OSError) as error:
        server.check()
        raise InputError(
            f"the server {server.name} does not do what it is asked ({error}); its log is {server.log}"
        ) from error


def _result(
    setting: str, clients: int, rounds: Sequence[Sequence[Answer]], stock: Sequence[Sequence[Answer]]
) -> SideResult:
    answers = [answer for round_ in rounds for answer in round_]

    def over(read: Callable[[Answer], float | None]) -> Spread | None:
        values = [value for answer in answers if (value := read(answer)) is not None]
        return spread(values) if values else None

    def speedup(read: Callable[[Sequence[Answer]], float | None]) -> Spread | None:
        pairs = [(read(its), read(ours)) for its, ours in zip(stock, rounds)]
        ratios = [its / ours for its, ours in pairs if its and ours]
        return spread(ratios) if ratios and rounds is not stock else None

    return {
        "setting": setting,
        "clients": clients,
        "requests": len(answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers) / len(answers),
        "output_tokens": min(answer.output_tokens for answer in answers),
        "requests_per_s": spread([rate(round_) for round_ in rounds]),
        "first_token_ms": spread([answer.first_token_ms for answer in answers]),
        "token_ms": over(lambda answer: answer.token_ms),
        "requests_speedup": speedup(lambda round_: 1 / rate(round_)),
        "first_token_speedup": speedup(lambda round_: median(answer.first_token_ms for answer in round_)),
        "token_speedup": speedup(_token_ms),
    }


def _token_ms(answers: Sequence[Answer]) -> float | None:
    """The median of a round."""
    values = [value for answer in answers if (value := answer.token_ms) is not None]
    return median(values) if values else None
