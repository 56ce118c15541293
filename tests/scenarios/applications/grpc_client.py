"""Calls what grpc_server.py serves, and prints what it found: grpc_client.py HOST:PORT FILE"""

import hashlib
import queue
import sys
import time

import grpc

address, file = sys.argv[1:]
body = open(file, "rb").read()
channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 16 << 20)])

# Ping-pong: each message is sent only when the answer to the one before it has come.
turns = queue.Queue()
answers = channel.stream_stream("/shop.Orders/Reverse")(iter(turns.get, None))
taken = 0
for number in range(200):
    turns.put(b"message %d" % number)
    taken += next(answers) == (b"message %d" % number)[::-1]
print("in turns", taken)
# An open stream that says nothing for a while, and then goes on.
time.sleep(2)
turns.put(body)
print("after a pause", hashlib.sha256(next(answers)[::-1]).hexdigest())
turns.put(None)
print("status", answers.code().name)

# Many messages before the first answer is read.
pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
back = b"".join(answer[::-1] for answer in channel.stream_stream("/shop.Orders/Reverse")(iter(pieces)))
print("streamed", hashlib.sha256(back).hexdigest())

try:
    channel.unary_unary("/shop.Orders/Slow")(b"", timeout=0.7)
except grpc.RpcError as error:
    print("deadline", error.code().name)
try:
    channel.unary_unary("/shop.Orders/Refuse")(b"")
except grpc.RpcError as error:
    print("refused", error.code().name, error.details(), dict(error.trailing_metadata())["reason"])
