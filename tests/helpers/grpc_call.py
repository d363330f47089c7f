"""A call of gRPC by bytes on a socket, as a program that knows nothing of Ray would make it."""

import socket
import time

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _END_STREAM, _END_HEADERS = 0, 1, 4, 1, 4
_SECONDS = 30.0


def call(port: int, method: str, token: str | None) -> bytes:
    """Call a method on this machine with an empty message; return the bytes that come until the connection is idle."""
    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "te": "trailers"}
    headers["content-type"] = "application/grpc"
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    # HPACK, literal header field without indexing, new name (RFC 7541, section 6.2.2).
    block = b"".join(b"\0" + _string(name) + _string(value) for name, value in headers.items())
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        request = (
            _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, block)
            + _frame(_DATA, _END_STREAM, 1, bytes(5))
        )
        connection.sendall(_PREFACE + request)
        answer, deadline = b"", time.monotonic() + _SECONDS
        while time.monotonic() < deadline and not _has_ended(answer):
            try:
                received = connection.recv(65536)
            except ConnectionResetError:
                break
            if not received:
                break
            answer += received
    return answer


def _string(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _has_ended(answer: bytes) -> bool:
    """Tell whether a frame of the stream of the call says that it is the last, or the answer is not HTTP/2."""
    if answer.startswith(b"HTTP/1"):
        return True
    position = 0
    while len(answer) >= position + 9:
        size = int.from_bytes(answer[position : position + 3], "big")
        kind, flags = answer[position + 3 : position + 5]
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM and len(answer) >= position + 9 + size:
            return True
        position += 9 + size
    return False
