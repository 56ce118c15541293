"""Talks to websocket_server.py, and prints what it found: websocket_client.py URL FILE"""

import hashlib
import sys
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

url, file = sys.argv[1:]
body = open(file, "rb").read()
connection = connect(url, max_size=16 << 20, ping_interval=None)
connection.send("a few words")
print("echo", connection.recv(10))
# One message in many fragments, and one of some megabytes.
connection.send(str(number) for number in range(100))
print("fragments", connection.recv(10) == "".join(map(str, range(100))))
connection.send(body)
print("big", hashlib.sha256(connection.recv(20)).hexdigest())
time.sleep(3)
print("ping after a pause", connection.ping().wait(10))
connection.send("go away")
try:
    connection.recv(10)
except ConnectionClosed as closed:
    print("closed", closed.rcvd.code, closed.rcvd.reason)
