"""A TCP proxy before a real server that answers 503, or cuts requests or answers short, as often as it is told to."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_REFUSAL = b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class FaultyProxy:
    """Passes bytes on. ``fail_next`` requests get a 503; ``cut_next`` answers longer than ``cut_after`` bytes are cut,
    and ``break_next`` connections on which more than that was sent are broken."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.fail_next = 0
        self.cut_next = 0
        self.break_next = 0
        self.cut_after = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.fail_next > 0:
                self.fail_next -= 1
                with suppress(OSError):
                    client.recv(65536)
                    client.sendall(_REFUSAL)
                return
            with socket.create_connection(self._server) as server:
                back = threading.Thread(target=self._answer, args=(server, client), daemon=True)
                back.start()
                sent = 0
                with suppress(OSError):
                    while data := client.recv(65536):
                        sent += len(data)
                        if self.break_next > 0 and sent > self.cut_after:
                            self.break_next -= 1
                            break
                        if self.fail_next > 0:  # also on connections that were kept open
                            self.fail_next -= 1
                            client.sendall(_REFUSAL)
                            break
                        server.sendall(data)
                for one in (server, client):
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                back.join()

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        sent = 0
        with suppress(OSError):
            while data := server.recv(65536):
                sent += len(data)
                if self.cut_next > 0 and sent > self.cut_after:
                    self.cut_next -= 1
                    break
                client.sendall(data)
        for one in (server, client):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
