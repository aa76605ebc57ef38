"""Servicers that answer as a test told them to and keep what they were asked, on a real unix socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc


class Scripted:
    """``answers`` holds by method an answer, a list of them for a stream, or a function of request and context."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answers: dict[str, Any] = {}
        self.fails: tuple[grpc.StatusCode, str, int | None] | None = None

    def answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(request)
        if self.fails is not None:
            code, details, exit_code = self.fails
            if exit_code is not None:
                context.set_trailing_metadata((("ha-sync-exit-code", str(exit_code)),))
            context.abort(code, details)
        answer = self.answers[method]
        return answer(request, context) if callable(answer) else answer


def unary(method: str) -> Callable[[Scripted, Any, grpc.ServicerContext], Any]:
    def respond(self: Scripted, request: Any, context: grpc.ServicerContext) -> Any:
        return self.answer(method, request, context)

    return respond


def streaming(method: str) -> Callable[[Scripted, Any, grpc.ServicerContext], Iterator[Any]]:
    def respond(self: Scripted, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self.answer(method, request, context)

    return respond


@contextmanager
def listening(servicer: Scripted, add: Callable[[Any, grpc.Server], None], path: str) -> Iterator[None]:
    """The servicer answers at the unix socket ``path``."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        add(servicer, server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
