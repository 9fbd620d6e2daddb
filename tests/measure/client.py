"""Clients: HTTP/1.1 with keep-alive, and WebSockets (RFC 6455) that hold what they receive to the letter."""

import asyncio
import base64
import json
import os
import socket
import struct

from edge import CLIENT, EDGE, HOST, HTTPS

# A failure bound for one answer.
BOUND = 20.0


class Broken(Exception):
    """The other side did what it must not do."""


async def connect(context, receive_buffer=None):
    """A TLS connection from the client's address."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        # The port is chosen at connect, so that many thousand connections find one.
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((CLIENT, 0))
        await asyncio.wait_for(loop.sock_connect(sock, (EDGE, HTTPS)), BOUND)
        return await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=HOST, limit=receive_buffer or 1 << 16, ssl_handshake_timeout=BOUND)
    except BaseException:
        sock.close()
        raise


class Http:
    """One HTTP/1.1 connection with keep-alive."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, context):
        return cls(*await connect(context))

    async def ask(self, method="GET", path="/", body=b"", headers=""):
        """One request; returns status, headers and body."""
        length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{length}{headers}\r\n"
        self.writer.write(head.encode() + body)
        return await asyncio.wait_for(self.answer(), BOUND)

    async def answer(self):
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        headers = {}
        for line in filter(None, lines):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readuntil(b"\r\n")
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, body

    async def close(self):
        self.writer.close()
        try:
            await asyncio.wait_for(self.writer.wait_closed(), BOUND)
        except (OSError, asyncio.TimeoutError):
            pass


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode, payload=b""):
    """A masked frame. The mask is zero, which is a mask too and costs nothing."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + payload


class WebSocket:
    """A tunnel to the gateway after challenge, connect and hello.

    Pings are answered. `ended` becomes a text: `close CODE` when a close frame came and nothing after
    it, else what was wrong: an end in the middle of a frame, or without a close frame.
    """

    def __init__(self, reader, writer, pace=None):
        self.reader, self.writer = reader, writer
        self.pace = pace
        self.waiting = {}
        self.bytes = 0
        self.number = 0
        self.ended = asyncio.get_running_loop().create_future()
        self.pump = None

    @classmethod
    async def open(cls, context, pace=None, receive_buffer=None):
        reader, writer = await connect(context, receive_buffer)
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), BOUND)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Broken(f"no upgrade: {head[:200]!r}")
        self = cls(reader, writer, pace)
        opcode, payload = await asyncio.wait_for(self.receive(), BOUND)
        if opcode != TEXT or json.loads(payload)["event"] != "connect.challenge":
            raise Broken(f"no challenge: {payload[:200]!r}")
        self.pump = asyncio.create_task(self.follow())
        await self.call("connect", {"minProtocol": 4, "maxProtocol": 4})
        return self

    def begin(self, method, params):
        """Sends a request; returns the future of its payload."""
        self.number += 1
        request = {"type": "req", "id": str(self.number), "method": method, "params": params}
        self.waiting[str(self.number)] = answer = asyncio.get_running_loop().create_future()
        self.writer.write(frame(TEXT, json.dumps(request).encode()))
        return answer

    async def call(self, method, params):
        return await asyncio.wait_for(self.begin(method, params), BOUND)

    async def receive(self):
        """One whole frame. Raises IncompleteReadError when the stream ends in it."""
        head = await self.exactly(2, may_end=True)
        if head is None:
            return None, b""
        size = head[1] & 0x7F
        if head[1] & 0x80 or head[0] & 0x70 or not head[0] & 0x80:
            raise Broken(f"an odd frame head: {head!r}")
        if size == 126:
            (size,) = struct.unpack("!H", await self.exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.exactly(8))
        return head[0] & 0x0F, await self.exactly(size)

    async def exactly(self, size, may_end=False):
        """As `readexactly`; with a pace, as a slow client: `pace` bytes each 50 ms."""
        parts, left = [], size
        while left:
            part = await self.reader.read(min(left, self.pace or left))
            if not part:
                if may_end and left == size:
                    return None
                raise asyncio.IncompleteReadError(b"".join(parts), size)
            parts.append(part)
            left -= len(part)
            self.bytes += len(part)
            if self.pace and left:
                await asyncio.sleep(0.05)
        return b"".join(parts)

    async def follow(self):
        try:
            end = await self.frames()
        except asyncio.IncompleteReadError as cut:
            end = f"the end in the middle of a frame, after {len(cut.partial)} of {cut.expected} bytes"
        except (Broken, OSError, ValueError) as fault:
            end = f"{type(fault).__name__}: {fault}"
        self.ended.set_result(end)
        for answer in self.waiting.values():
            if not answer.done():
                answer.cancel()

    async def frames(self):
        while True:
            opcode, payload = await self.receive()
            if opcode is None:
                return "the end without a close frame"
            if opcode == PING:
                self.writer.write(frame(PONG, payload))
            elif opcode == CLOSE:
                code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                self.writer.write(frame(CLOSE, payload[:2]))
                rest = await asyncio.wait_for(self.reader.read(), BOUND)
                self.writer.close()
                return f"close {code}" if not rest else f"{len(rest)} bytes after the close frame"
            elif opcode == TEXT:
                message = json.loads(payload)
                answer = self.waiting.pop(message.get("id"), None)
                if answer is not None and not answer.done():
                    answer.set_result(message.get("payload"))

    async def leave(self):
        """Closes in order, as a browser does."""
        if not self.ended.done():
            self.writer.write(frame(CLOSE, struct.pack("!H", 1000)))
        end = await asyncio.wait_for(self.ended, BOUND)
        self.writer.close()
        return end


async def many(count, make, at_once=64):
    """Makes `count` things, some at a time, so that no queue overflows."""
    gate = asyncio.Semaphore(at_once)

    async def one():
        async with gate:
            return await make()

    return await asyncio.gather(*(one() for _ in range(count)))
