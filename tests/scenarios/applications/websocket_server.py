"""A WebSocket echo that ends a connection with a code of its own when asked: websocket_server.py PORT"""

import signal
import sys

from websockets.sync.server import serve


def echo(connection):
    for message in connection:
        if message == "go away":
            connection.close(4321, "as you wish")
            return
        connection.send(message)


server = serve(echo, "0.0.0.0", int(sys.argv[1]), max_size=16 << 20)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
server.serve_forever()
